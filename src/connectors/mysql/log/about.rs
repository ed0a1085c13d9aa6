//! What a server says about its log and a table.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::super::discover::Relation;
use super::cascades::Cascades;
use super::gtid::GtidSet;
use super::place::At;
use super::snapshot::{self, End};
use crate::clients::mysql::{Session, integer, literal, text};
use crate::error::{Error, ErrorKind, Result};

/// What the server says.
#[derive(Debug, Default)]
pub(super) struct About {
    pub(super) mariadb: bool,
    /// When the server was asked, in seconds since 1970 by its clock.
    pub(super) asked: i64,
    /// The same by ours.
    asked_here: DateTime<Utc>,
    /// Its number among the servers of its topology.
    pub(super) server: u32,
    /// Whether tables have the same name when it differs by case.
    pub(super) any_case: bool,
    /// How foreign keys change rows of the table when others change.
    pub(super) cascades: Cascades,
    pub(super) on: bool,
    pub(super) format: String,
    pub(super) image: String,
    /// After how many seconds its files are dropped; zero: never.
    pub(super) keeps: f64,
    /// Whether it follows another server and does not log what comes from there.
    pub(super) silent_replica: bool,
    pub(super) versioned: bool,
    /// The databases that are logged only, and those that are not.
    pub(super) filters: [Vec<String>; 2],
    pub(super) end: Option<At>,
    /// Why the end of the log is not known.
    pub(super) refused: Option<Error>,
    /// MySQL's: 8.0.39 is (8, 0, 39).
    pub(super) version: (u16, u16, u16),
    /// MySQL: whether all transactions have numbers.
    pub(super) gtid_mode: String,
    /// MySQL: the transactions that it has, and those of them that are not in its log any more.
    pub(super) executed: GtidSet,
    pub(super) purged: GtidSet,
    /// MySQL: whether the log has parts of JSON values only.
    pub(super) partial_json: bool,
    /// MySQL: whether columns that the server made itself are hidden.
    pub(super) hides_columns: bool,
}

/// The settings that matter, of both servers; each has some of them.
const SETTINGS: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('lower_case_table_names', 'log_bin', 'binlog_format', \
     'binlog_row_image', 'expire_logs_days', 'binlog_expire_logs_seconds', 'log_slave_updates', 'log_replica_updates', \
     'server_id', 'version', 'gtid_mode', 'binlog_row_value_options', 'show_gipk_in_create_table_and_information_schema')";

/// Looks at everything.
pub(super) async fn look(session: &mut Session, relation: &Relation) -> Result<About> {
    let mariadb = session.server().mariadb;
    let rows = session.rows(SETTINGS).await?;
    let said: HashMap<String, String> =
        rows.iter().map(|row| (text(row, 0).to_ascii_lowercase(), text(row, 1))).collect();
    let setting = |name: &str| said.get(name).map(String::as_str).unwrap_or_default();
    let on = |name: &str| matches!(setting(name), "ON" | "1");
    let number = |name: &str| setting(name).parse::<f64>().unwrap_or_default();
    let days = number("expire_logs_days") * 86_400.0;
    let logs_others = on("log_slave_updates") || on("log_replica_updates");

    let sql = format!(
        "SELECT UNIX_TIMESTAMP(), EXISTS (SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} \
         AND TABLE_NAME = {} AND TABLE_TYPE = 'SYSTEM VERSIONED')",
        literal(relation.id.schema_or("")),
        literal(&relation.id.name)
    );
    let rows = session.rows(&sql).await?;
    let silent = || Error::new(ErrorKind::Internal, "the server does not say how it is set up");
    let row = rows.first().ok_or_else(silent)?;
    let mut about = About {
        mariadb,
        asked: integer(row, 0).unwrap_or_default(),
        asked_here: Utc::now(),
        server: setting("server_id").parse().unwrap_or_default(),
        any_case: setting("lower_case_table_names") != "0",
        cascades: Cascades::look(session, &relation.id).await?,
        on: on("log_bin"),
        format: setting("binlog_format").to_owned(),
        image: setting("binlog_row_image").to_owned(),
        keeps: days.max(number("binlog_expire_logs_seconds")),
        versioned: integer(row, 1) == Some(1),
        version: version(setting("version")),
        gtid_mode: setting("gtid_mode").to_owned(),
        partial_json: !setting("binlog_row_value_options").is_empty(),
        hides_columns: setting("show_gipk_in_create_table_and_information_schema") == "OFF",
        ..About::default()
    };
    match snapshot::end(session).await {
        Err(error) => about.refused = Some(error),
        Ok(end) => {
            if let Some(End { at, filters }) = end {
                about.end = Some(at);
                about.filters = filters;
            }
            about.silent_replica = !logs_others && follows(session).await?;
        }
    }
    if about.has_numbers() {
        about.executed = snapshot::set(session, "gtid_executed").await?;
        about.purged = snapshot::set(session, "gtid_purged").await?;
    }
    Ok(about)
}

/// The numbers that a version begins with: `8.0.39-0ubuntu`.
fn version(text: &str) -> (u16, u16, u16) {
    let mut numbers =
        text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    (next(), next(), next())
}

/// Whether the server is another one's replica.
async fn follows(session: &mut Session) -> Result<bool> {
    if session.server().mariadb {
        let rows = session.rows("SHOW GLOBAL STATUS LIKE 'Slaves_running'").await?;
        return Ok(rows.first().and_then(|row| integer(row, 1)).is_some_and(|running| running > 0));
    }
    let renamed = session.server().version >= (8, 2);
    let rows = session.rows(if renamed { "SHOW REPLICA STATUS" } else { "SHOW SLAVE STATUS" }).await?;
    Ok(!rows.is_empty())
}

impl About {
    /// A time of the server's, in seconds since 1970, by our clock.
    pub(super) fn by_our_clock(&self, at: u32) -> Option<DateTime<Utc>> {
        self.asked_here.checked_sub_signed(TimeDelta::seconds(self.asked - i64::from(at)))
    }

    /// Whether it is a MySQL that gives every transaction a number.
    pub(super) fn has_numbers(&self) -> bool {
        !self.mariadb && self.gtid_mode == "ON"
    }
}
