//! What the log needs of a server, a table and a stream: each with what helps where it is missing.

use super::super::discover::Relation;
use super::about::{About, look};
use super::dump::{Dump, From};
use super::key::Key;
use crate::clients::mysql::Session;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Arrangement, Finding, Goal, ReadRequest, Severity};
use crate::table::TableKind;

/// The first MySQL that completes distributed transactions in the log and in the storage engine as one.
const OLDEST: (u16, u16, u16) = (8, 0, 30);

impl About {
    /// Refuses what cannot be read from the log; the first reason of several.
    pub(super) fn check(&self, relation: &Relation, request: &ReadRequest) -> Result<()> {
        self.problems(relation, request).into_iter().next().map_or(Ok(()), Err)
    }

    fn problems(&self, relation: &Relation, request: &ReadRequest) -> Vec<Error> {
        let mut problems = Vec::new();
        self.of_server(&mut problems);
        self.of_numbers(&mut problems);
        self.of_table(relation, &mut problems);
        let keyed = request.keyed && !request.key.is_empty();
        if keyed {
            self.of_key(relation, request, &mut problems);
        } else {
            let message = "the log is read by key, and the stream has none";
            let hint = "use `mode: merge`, with a `primary_key` where the table has none";
            problems.push(Error::new(ErrorKind::Config, message).hint(hint));
        }
        problems = problems.into_iter().map(|problem| problem.with("table", &relation.id)).collect();
        if keyed {
            // It names the table itself.
            problems.extend(Key::of(relation, request).err());
        }
        problems
    }

    fn of_server(&self, problems: &mut Vec<Error>) {
        let mut find =
            |kind, message: String, hint: &str| problems.push(Error::new(kind, message).hint(hint));
        if !self.on {
            let message = "the server keeps no log (`log_bin` is off)".to_owned();
            find(
                ErrorKind::Config,
                message,
                "start it with `log_bin`, `binlog_format=ROW` and a `server_id`",
            );
        } else if let Some(error) = &self.refused {
            let message = format!("the user may not see where the log is: {}", error.message());
            let hint = match self.mariadb {
                true => "run `GRANT BINLOG MONITOR ON *.* TO <user>` (`REPLICATION CLIENT` before 10.5)",
                false => "run `GRANT REPLICATION CLIENT ON *.* TO <user>`",
            };
            find(error.kind(), message, hint);
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
            let hint = match self.mariadb {
                true => "start it with `log_slave_updates`, or connect to the primary",
                false => "start it with `log_replica_updates`, or connect to the primary",
            };
            find(ErrorKind::Config, message, hint);
        }
    }

    /// What MySQL's numbers of transactions need.
    fn of_numbers(&self, problems: &mut Vec<Error>) {
        if self.mariadb || !self.on {
            return;
        }
        if !self.has_numbers() {
            let mode = if self.gtid_mode.is_empty() { "not there" } else { &self.gtid_mode };
            let message = format!("MySQL's log is followed by GTIDs, and the server's `gtid_mode` is {mode}");
            problems.push(Error::new(ErrorKind::Config, message).hint(
                "run on each server, each step on all of them before the next: `SET PERSIST enforce_gtid_consistency = ON`, \
                 `SET PERSIST gtid_mode = OFF_PERMISSIVE`, `SET PERSIST gtid_mode = ON_PERMISSIVE`, and once replicas have \
                 caught up `SET PERSIST gtid_mode = ON`",
            ));
        }
        if self.version < OLDEST {
            let (major, minor, patch) = OLDEST;
            let message = format!("the log of a MySQL before {major}.{minor}.{patch} is not read");
            problems.push(Error::new(ErrorKind::Unsupported, message).hint(
                "there a distributed transaction can count as done before it is to be seen: use another `change`",
            ));
        }
        if self.hides_columns {
            let message = "the server hides keys that it made itself, and the log has them".to_owned();
            let hint = "run `SET PERSIST show_gipk_in_create_table_and_information_schema = ON`";
            problems.push(Error::new(ErrorKind::Config, message).hint(hint));
        }
    }

    fn of_table(&self, relation: &Relation, problems: &mut Vec<Error>) {
        let mut find = |message: String, hint: &str| {
            problems.push(Error::new(ErrorKind::Config, message).hint(hint));
        };
        let schema = relation.id.schema_or("");
        let [only, without] = &self.filters;
        let listed = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case(schema));
        if listed(without) || !only.is_empty() && !listed(only) {
            let message = format!("the server does not log the database `{schema}`");
            find(message, "take it out of `binlog_ignore_db`, or add it to `binlog_do_db`");
        }
        if relation.kind != TableKind::Table || self.versioned {
            let message = "only tables without a history of their own are read from the log".to_owned();
            find(message, "use `change: full`, or read the tables that are behind it");
        } else if relation.engine != "InnoDB" {
            let message =
                format!("the engine {} has no snapshots, by which the log is read", relation.engine);
            find(message, "run `ALTER TABLE … ENGINE=InnoDB`, or use `change: full`");
        }
    }

    fn of_key(&self, relation: &Relation, request: &ReadRequest, problems: &mut Vec<Error>) {
        let mut find = |message: String, hint: &str| {
            problems.push(Error::new(ErrorKind::Config, message).hint(hint));
        };
        let indexed = |name: &String| relation.column(name).is_some_and(|column| column.indexed);
        if !request.key.iter().any(indexed) {
            let message = "no index begins with a column of the stream's key".to_owned();
            find(message, "rows are read by key: run `CREATE UNIQUE INDEX <name> ON … (…)`");
        }
        let mut own = relation.keys.iter().filter(|key| key.primary);
        if self.image != "FULL" && !own.any(|own| request.key.iter().all(|name| own.columns.contains(name))) {
            let message = format!("with `binlog_row_image` {} the log has the primary key only", self.image);
            find(message, "run `SET GLOBAL binlog_row_image = 'FULL'`, or go by the primary key");
        }
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
        let opened = match Dump::open(connection, request, about.server, From::Place(end)).await {
            Ok(Ok(mut dump)) => dump.origin().await.map(drop),
            Ok(Err(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = opened {
            let message = format!("the user may not read the log: {}", error.message());
            find(Severity::Error, message, Some("GRANT REPLICATION SLAVE ON *.* TO <user>"));
        }
        if about.keeps > 0.0 {
            let days = format!("{:.2}", about.keeps / 86_400.0);
            let message = format!(
                "the server drops its log after {} days: a pass has to come more often",
                days.trim_end_matches('0').trim_end_matches('.')
            );
            find(Severity::Note, message, None);
        }
    }
    if about.filters.iter().any(|names| !names.is_empty()) {
        let message = "the server logs some databases only (`binlog_do_db`, `binlog_ignore_db`), and statements by the \
                       database that a session is in: a TRUNCATE or ALTER of the table from elsewhere is in no log";
        find(Severity::Warning, message.to_owned(), None);
    }
    if about.partial_json {
        let message = "the server logs parts of JSON values (`binlog_row_value_options`): after such a change \
                       the whole table is read and compared";
        find(Severity::Warning, message.to_owned(), Some("SET PERSIST binlog_row_value_options = ''"));
    }
    if about.cascades.any() {
        let message = "a foreign key changes rows of the table, which is not in the log: after such a \
                       change of the other table the whole table is read and compared";
        find(Severity::Note, message.to_owned(), None);
    }
    Ok(findings)
}

/// What `frazil setup` has to say: nothing of ours is put anywhere, and settings of a server and rights are
/// for somebody who knows what else they do.
pub(in super::super) async fn arrange(
    connection: &Connection,
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
    goal: Goal,
) -> Result<Arrangement> {
    let mut arrangement = Arrangement::nothing("the log needs nothing of ours in the database");
    if goal == Goal::Setup {
        let findings = findings(connection, session, relation, request).await?;
        arrangement.suggestions.extend(findings.into_iter().filter_map(|finding| finding.remedy));
    }
    Ok(arrangement)
}
