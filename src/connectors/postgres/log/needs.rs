//! What the log needs of a server, a table and a stream: each with what helps where it is missing.

use chrono::{DateTime, TimeDelta, Utc};

use super::super::discover::Relation;
use super::{publication, replica, slot};
use crate::clients::postgres::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Finding, ReadRequest, Severity};
use crate::table::TableKind;

/// The first version whose plug-in sends values in binary.
const OLDEST: u32 = 140_000;

/// When the server was asked, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Microseconds since 1970.
    there: i64,
    here: DateTime<Utc>,
}

impl Asked {
    /// Seconds since 1970, by the server's clock.
    pub(super) fn seconds(self) -> i64 {
        self.there.div_euclid(1_000_000)
    }

    /// A time of the server (microseconds since 1970) by our clock.
    pub(super) fn by_our_clock(self, at: i64) -> Option<DateTime<Utc>> {
        self.here.checked_sub_signed(TimeDelta::microseconds(self.there.saturating_sub(at)))
    }
}

/// What the server says about itself and the table.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) database: String,
    pub(super) asked: Asked,
    wal_level: String,
    /// `d`efault, `n`othing, `f`ull, `i`ndex; `?` where partitions differ.
    pub(super) identity: u8,
    /// The columns that old rows have.
    identity_columns: Vec<String>,
    /// Whether changes of all its parts are written to the log.
    logged: bool,
    /// Whether other tables inherit from it and are no partitions.
    inherited: bool,
    may_replicate: bool,
    may_publish: bool,
    slots: i64,
    most_slots: i64,
    /// Whether a slot keeps as much log as it takes.
    keeps_all: bool,
}

/// Looks at everything.
pub(super) async fn look(session: &Session, relation: &Relation) -> Result<About> {
    let sql = format!(
        "WITH RECURSIVE tree AS (
             SELECT c.oid, c.relkind, c.relreplident, c.relpersistence, c.relowner FROM pg_class c WHERE c.oid = {oid}
             UNION SELECT c.oid, c.relkind, c.relreplident, c.relpersistence, c.relowner
             FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid JOIN pg_class c ON c.oid = i.inhrelid)
         SELECT current_database()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8, current_setting('wal_level'),
                (SELECT CASE WHEN count(DISTINCT relreplident) = 1 THEN min(relreplident::text) ELSE '?' END
                 FROM tree WHERE relkind <> 'p' OR NOT EXISTS (SELECT FROM tree WHERE relkind = 'r')),
                ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
                      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey::int2[])
                      WHERE i.indrelid = {oid} AND i.indisvalid
                        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END),
                NOT EXISTS (SELECT FROM tree WHERE relpersistence <> 'p' OR relkind NOT IN ('r', 'p')),
                (SELECT count(*) > 1 AND bool_and(relkind <> 'p') FROM tree),
                (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)
                    OR EXISTS (SELECT FROM pg_roles WHERE rolname IN ('rds_replication', 'rds_superuser')
                               AND pg_has_role(oid, 'MEMBER')),
                has_database_privilege(current_database(), 'CREATE')
                    AND (SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM tree WHERE oid = {oid}),
                (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int8,
                current_setting('max_slot_wal_keep_size', true)",
        oid = relation.oid
    );
    let rows = session.query_typed(&sql, &[]).await?;
    let gone =
        || Error::new(ErrorKind::Transient, "the table was dropped just now").with("table", &relation.id);
    let row = rows.first().ok_or_else(gone)?;
    Ok(About {
        database: row.get(0),
        asked: Asked { there: row.get(1), here: Utc::now() },
        wal_level: row.get(2),
        identity: row.get::<_, Option<String>>(3).and_then(|text| text.bytes().next()).unwrap_or(b'?'),
        identity_columns: row.get(4),
        logged: row.get(5),
        inherited: row.get(6),
        may_replicate: row.get::<_, Option<bool>>(7).unwrap_or(false),
        may_publish: row.get::<_, Option<bool>>(8).unwrap_or(false),
        slots: row.get(9),
        most_slots: row.get(10),
        keeps_all: row.get::<_, Option<String>>(11).is_none_or(|size| size == "-1"),
    })
}

impl About {
    /// Refuses what cannot be read from the log; the first reason of several.
    pub(super) fn check(&self, session: &Session, relation: &Relation, request: &ReadRequest) -> Result<()> {
        match self.problems(session, relation, request).into_iter().next() {
            None => Ok(()),
            Some(problem) => Err(problem),
        }
    }

    /// What is in the way of reading the log.
    pub(super) fn problems(
        &self,
        session: &Session,
        relation: &Relation,
        request: &ReadRequest,
    ) -> Vec<Error> {
        let mut problems = Vec::new();
        let mut find =
            |kind, message: &str, hint: String| problems.push(Error::new(kind, message).hint(hint));
        let (server, table) = (session.server(), relation.quoted());
        if server.version < OLDEST {
            let hint = "use `change: timestamp` or `change: full`".to_owned();
            find(ErrorKind::Unsupported, "reading the log needs Postgres 14 or later", hint);
        } else if server.standby && server.version < replica::OLDEST {
            let hint = "connect to the primary, or use `change: timestamp`".to_owned();
            find(ErrorKind::Unsupported, "reading the log of a replica needs Postgres 16 or later", hint);
        }
        if self.wal_level != "logical" {
            let message =
                format!("the server's `wal_level` is `{}`, and the log needs `logical`", self.wal_level);
            find(
                ErrorKind::Config,
                &message,
                "run `ALTER SYSTEM SET wal_level = 'logical'` and restart the server".to_owned(),
            );
        }
        if !matches!(relation.kind, TableKind::Table | TableKind::PartitionedTable) || self.inherited {
            let hint = "use `change: full`, or read the tables that are behind it".to_owned();
            find(ErrorKind::Config, "only tables and partitioned tables have changes in the log", hint);
        } else if !self.logged || relation.heap.is_none() {
            let hint = format!("run `ALTER TABLE {table} SET LOGGED`, or use `change: full`");
            find(
                ErrorKind::Config,
                "the table, or a part of it, is unlogged or foreign: it is not in the log",
                hint,
            );
        }
        if !request.keyed || request.key.is_empty() {
            let hint = "use `mode: merge`, with a `primary_key` where the table has none".to_owned();
            find(ErrorKind::Config, "the log is read by key, and the stream has none", hint);
        } else {
            problems.extend(self.identity_problem(relation, request));
        }
        if request.filter.is_some() {
            problems.push(Error::new(ErrorKind::Config, "`where` does not go with `change: log`").hint(
                "a row that leaves the condition would stay in the lake: drop `where`, or use `change: full`",
            ));
        }
        problems.into_iter().map(|problem| problem.with("table", &relation.id)).collect()
    }

    /// Whether old rows show the key that the stream goes by.
    fn identity_problem(&self, relation: &Relation, request: &ReadRequest) -> Option<Error> {
        let table = relation.quoted();
        let full = format!("run `ALTER TABLE {table} REPLICA IDENTITY FULL`");
        let (message, hint) = match self.identity {
            b'f' => return None,
            b'n' => (
                "the table's replica identity is `nothing`: the log does not say which rows change"
                    .to_owned(),
                format!(
                    "run `ALTER TABLE {table} REPLICA IDENTITY DEFAULT` if it has a primary key, else {}",
                    full
                ),
            ),
            b'?' => (
                "the table's partitions have different replica identities".to_owned(),
                "give all of them the same by `ALTER TABLE … REPLICA IDENTITY`".to_owned(),
            ),
            _ => {
                let missing = request.key.iter().find(|key| !self.identity_columns.contains(key))?;
                (
                    format!("the key's column `{missing}` is not in the table's replica identity"),
                    format!("let `primary_key` be the table's own, or {full}"),
                )
            }
        };
        Some(Error::new(ErrorKind::Config, message).hint(hint))
    }
}

/// Whether rows of a table have values that are stored apart.
pub(super) async fn has_large_values(session: &Session, relation: &Relation) -> Result<bool> {
    let sql = format!(
        "WITH RECURSIVE tree AS (SELECT {}::oid AS oid UNION SELECT i.inhrelid FROM tree \
         JOIN pg_inherits i ON i.inhparent = tree.oid) \
         SELECT coalesce(bool_or(pg_relation_size(c.reltoastrelid) > 0), false) \
         FROM tree JOIN pg_class c USING (oid) WHERE c.reltoastrelid <> 0",
        relation.oid
    );
    Ok(session.query_typed(&sql, &[]).await?.first().is_some_and(|row| row.get(0)))
}

/// What `frazil check` has to say.
pub(in super::super) async fn findings(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
) -> Result<Vec<Finding>> {
    let about = look(session, relation).await?;
    let mut findings: Vec<Finding> =
        about.problems(session, relation, request).iter().map(Finding::from).collect();
    let mut find = |severity, message: String, remedy: String| {
        findings.push(Finding { severity, message, remedy: Some(remedy) });
    };
    if !about.may_replicate {
        find(
            Severity::Error,
            "the user may not use replication slots".to_owned(),
            "ALTER ROLE <user> REPLICATION".to_owned(),
        );
    }
    let own = slot::own_name(request, &about.database);
    let slot = slot_finding(session, request, &about, &own).await?;
    if about.keeps_all {
        find(
            Severity::Note,
            "a slot that nobody reads keeps log until the server's disk is full".to_owned(),
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'".to_owned(),
        );
    }
    let publication = publication_finding(session, relation, request, &about, &own).await?;
    findings.extend(slot.into_iter().chain(publication));
    if session.server().standby {
        findings.extend(replica::findings(session).await?);
    }
    if about.identity != b'f' {
        findings.push(Finding {
            severity: Severity::Note,
            message:
                "large values that an update leaves alone are not in the log, and are taken from the lake"
                    .to_owned(),
            remedy: None,
        });
    }
    Ok(findings)
}

/// What is wrong with the slot, or with making one.
async fn slot_finding(
    session: &Session,
    request: &ReadRequest,
    about: &About,
    own: &str,
) -> Result<Option<Finding>> {
    let name = request.log.slot.as_deref().unwrap_or(own);
    let (message, remedy) = match slot::look(session, name).await? {
        None if request.log.slot.is_some() => (
            format!("there is no replication slot `{name}`"),
            format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"),
        ),
        None if about.slots >= about.most_slots => (
            format!("all {} replication slots of the server are taken", about.most_slots),
            format!("ALTER SYSTEM SET max_replication_slots = {}", about.most_slots * 2),
        ),
        Some(slot) if slot.is_lost() => (
            format!("the replication slot `{name}` is lost"),
            format!("SELECT pg_drop_replication_slot('{name}')"),
        ),
        _ => return Ok(None),
    };
    Ok(Some(Finding { severity: Severity::Error, message, remedy: Some(remedy) }))
}

/// What is wrong with the publication, or with making one.
async fn publication_finding(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
    about: &About,
    own: &str,
) -> Result<Option<Finding>> {
    if let Some(name) = &request.log.publication {
        let published = publication::look(session, name, relation).await?;
        return Ok(publication::refusal(name, &published, relation).map(|error| Finding::from(&error)));
    }
    let statement = publication::creation(own, relation);
    let there = publication::look(session, own, relation).await?;
    if !matches!(there, publication::Published::Missing | publication::Published::Without) {
        return Ok(None);
    }
    if session.server().standby {
        return Ok(Some(Finding::from(&replica::missing_publication(&statement))));
    }
    Ok((!about.may_publish).then(|| Finding {
        severity: Severity::Error,
        message: "the user may not make a publication of the table".to_owned(),
        remedy: Some(format!("let the table's owner run `{statement}`, and set `publication: {own}`")),
    }))
}
