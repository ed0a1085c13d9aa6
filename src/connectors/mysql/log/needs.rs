//! What the log needs of a server, a table and a stream: each with what helps where it is missing.

use chrono::{DateTime, TimeDelta, Utc};

use super::super::discover::{CASCADES, Relation};
use super::dump::Dump;
use super::key::Key;
use super::place::At;
use crate::clients::mysql::{Session, integer, literal, text};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Finding, ReadRequest, Severity};
use crate::table::TableKind;

/// What the server says about its log and the table.
#[derive(Debug, Default)]
pub(super) struct About {
    /// When the server was asked, in seconds since 1970 by its clock.
    pub(super) asked: i64,
    /// The same by ours.
    asked_here: DateTime<Utc>,
    /// Whether tables have the same name when it differs by case.
    pub(super) any_case: bool,
    /// Whether a foreign key changes rows of the table when others change.
    pub(super) cascades: bool,
    mariadb: bool,
    on: bool,
    format: String,
    image: String,
    days: String,
    /// Whether it follows another server and does not log what comes from there.
    silent_replica: bool,
    versioned: bool,
    /// The databases that are logged only, and those that are not.
    filters: [Vec<String>; 2],
    end: Option<At>,
    /// Why the end of the log is not known.
    refused: Option<Error>,
}

/// Looks at everything.
pub(super) async fn look(session: &mut Session, relation: &Relation) -> Result<About> {
    if !session.server().mariadb {
        return Ok(About::default());
    }
    let schema = literal(relation.id.schema_or(""));
    let table = format!("TABLE_NAME = {}", literal(&relation.id.name));
    let sql = format!(
        "SELECT UNIX_TIMESTAMP(), @@GLOBAL.lower_case_table_names, @@GLOBAL.log_bin, @@GLOBAL.binlog_format, \
         @@GLOBAL.binlog_row_image, @@GLOBAL.expire_logs_days, @@GLOBAL.log_slave_updates, \
         EXISTS (SELECT 1 FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = {schema} \
                 AND {table} AND {CASCADES}), \
         EXISTS (SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {schema} AND {table} \
                 AND TABLE_TYPE = 'SYSTEM VERSIONED')"
    );
    let rows = session.rows(&sql).await?;
    let silent = || Error::new(ErrorKind::Internal, "the server does not say how it is set up");
    let row = rows.first().ok_or_else(silent)?;
    let yes = |at| integer(row, at) == Some(1);
    let follows = session.rows("SHOW GLOBAL STATUS LIKE 'Slaves_running'").await?;
    let follows = follows.first().and_then(|row| integer(row, 1)).is_some_and(|running| running > 0);
    let mut about = About {
        asked: integer(row, 0).unwrap_or_default(),
        asked_here: Utc::now(),
        any_case: integer(row, 1) != Some(0),
        cascades: yes(7),
        mariadb: true,
        on: yes(2),
        format: text(row, 3),
        image: text(row, 4),
        days: text(row, 5),
        silent_replica: follows && !yes(6),
        versioned: yes(8),
        ..About::default()
    };
    match session.rows("SHOW MASTER STATUS").await {
        Err(error) => about.refused = Some(error),
        Ok(rows) => {
            if let Some(row) = rows.first() {
                let offset = integer(row, 1).unwrap_or_default().unsigned_abs();
                about.end = Some(At::new(&text(row, 0), offset));
                let names = |at| {
                    text(row, at).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
                };
                about.filters = [names(2), names(3)];
            }
        }
    }
    Ok(about)
}

impl About {
    /// A time of the server's, in seconds since 1970, by our clock.
    pub(super) fn by_our_clock(&self, at: u32) -> Option<DateTime<Utc>> {
        self.asked_here.checked_sub_signed(TimeDelta::seconds(self.asked - i64::from(at)))
    }

    /// Refuses what cannot be read from the log; the first reason of several.
    pub(super) fn check(&self, relation: &Relation, request: &ReadRequest) -> Result<()> {
        self.problems(relation, request).into_iter().next().map_or(Ok(()), Err)
    }

    fn problems(&self, relation: &Relation, request: &ReadRequest) -> Vec<Error> {
        let mut problems = Vec::new();
        let mut find = |kind, message: String, hint: &str| {
            problems.push(Error::new(kind, message).with("table", &relation.id).hint(hint));
        };
        if !self.mariadb {
            let message = "the log of MySQL is not read, only that of MariaDB".to_owned();
            find(ErrorKind::Unsupported, message, "use `change: timestamp` or `change: full`");
            return problems;
        }
        if !self.on {
            let message = "the server keeps no log (`log_bin` is off)".to_owned();
            find(
                ErrorKind::Config,
                message,
                "start it with `log_bin`, `binlog_format=ROW` and a `server_id`",
            );
        } else if let Some(error) = &self.refused {
            let message = format!("the user may not see where the log is: {}", error.message());
            find(
                error.kind(),
                message,
                "run `GRANT BINLOG MONITOR ON *.* TO <user>` (`REPLICATION CLIENT` before 10.5)",
            );
        }
        if self.format != "ROW" {
            let message =
                format!("the server's `binlog_format` is {}: its log does not have all rows", self.format);
            find(
                ErrorKind::Config,
                message,
                "run `SET GLOBAL binlog_format = 'ROW'`, set it in the server's configuration, and let applications connect anew",
            );
        }
        if self.silent_replica {
            let message = "the server is a replica, and does not log what comes from its primary".to_owned();
            find(ErrorKind::Config, message, "start it with `log_slave_updates`, or connect to the primary");
        }
        let schema = relation.id.schema_or("");
        let [only, without] = &self.filters;
        let listed = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case(schema));
        if listed(without) || !only.is_empty() && !listed(only) {
            let message = format!("the server does not log the database `{schema}`");
            find(
                ErrorKind::Config,
                message,
                "take it out of `binlog_ignore_db`, or add it to `binlog_do_db`",
            );
        }
        if relation.kind != TableKind::Table || self.versioned {
            let message = "only tables without a history of their own are read from the log".to_owned();
            find(ErrorKind::Config, message, "use `change: full`, or read the tables that are behind it");
        } else if relation.engine != "InnoDB" {
            let message =
                format!("the engine {} has no snapshots, by which the log is read", relation.engine);
            find(ErrorKind::Config, message, "run `ALTER TABLE … ENGINE=InnoDB`, or use `change: full`");
        }
        if !request.keyed || request.key.is_empty() {
            let message = "the log is read by key, and the stream has none".to_owned();
            find(
                ErrorKind::Config,
                message,
                "use `mode: merge`, with a `primary_key` where the table has none",
            );
        } else {
            let indexed = |name: &String| relation.column(name).is_some_and(|column| column.indexed);
            if !request.key.iter().any(indexed) {
                let message = "no index begins with a column of the stream's key".to_owned();
                find(
                    ErrorKind::Config,
                    message,
                    "rows are read by key: run `CREATE UNIQUE INDEX <name> ON … (…)`",
                );
            }
            let mut own = relation.keys.iter().filter(|key| key.primary);
            if self.image != "FULL"
                && !own.any(|own| request.key.iter().all(|name| own.columns.contains(name)))
            {
                let message =
                    format!("with `binlog_row_image` {} the log has the primary key only", self.image);
                find(
                    ErrorKind::Config,
                    message,
                    "run `SET GLOBAL binlog_row_image = 'FULL'`, or go by the primary key",
                );
            }
            problems.extend(Key::of(relation, request).err());
        }
        problems
    }
}

/// What `frazil check` has to say.
pub(in super::super) async fn findings(
    connection: &Connection,
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
) -> Result<Vec<Finding>> {
    let about = look(session, relation).await?;
    let mut findings: Vec<Finding> = about.problems(relation, request).iter().map(Finding::from).collect();
    let mut find = |severity, message: String, remedy: Option<&str>| {
        findings.push(Finding { severity, message, remedy: remedy.map(str::to_owned) });
    };
    if let Some(end) = &about.end {
        // A right is found out by asking for what needs it: a list of grants names roles and patterns.
        let opened = match Dump::open(connection, request, end).await {
            Ok(Ok(mut dump)) => dump.origin().await.map(drop),
            Ok(Err(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = opened {
            let message = format!("the user may not read the log: {}", error.message());
            find(Severity::Error, message, Some("GRANT REPLICATION SLAVE ON *.* TO <user>"));
        }
        if about.days.parse::<f64>().is_ok_and(|days| days > 0.0) {
            let message = format!(
                "the server drops its log after {} days: a pass has to come more often",
                about.days.trim_end_matches('0').trim_end_matches('.')
            );
            find(Severity::Note, message, None);
        }
    }
    if about.cascades {
        let message = "a foreign key changes rows of the table, which is not in the log: after such a \
                       change of the other table the whole table is read and compared";
        find(Severity::Note, message.to_owned(), None);
    }
    Ok(findings)
}
