//! The statements that keep every version of a row: what ends one, and what begins one.

use chrono::{DateTime, Utc};

use super::Statements;
use crate::connectors::sql::{Ended, MYSQL};
use crate::target::{IS_CURRENT, VALID_FROM, VALID_TO};

impl Statements {
    /// Ends versions at a moment: those that began later were never valid, and go. `None` when no version
    /// can end in this way.
    pub(in super::super) fn end_versions(&self, at: DateTime<Utc>, which: Ended) -> Option<[String; 2]> {
        let (from, condition) = match which {
            Ended::Deleted => (self.joined(), "s.op = 1".to_owned()),
            Ended::Changed => (self.joined(), format!("s.op = 0 AND {}", self.differs()?)),
            Ended::Others => (
                format!(
                    "{} AS t LEFT JOIN {} AS s ON {}",
                    MYSQL.table(&self.table),
                    self.staging(),
                    self.by_key()
                ),
                "s.op IS NULL".to_owned(),
            ),
        };
        let [begin, end, current] = columns();
        let at = moment(at);
        Some([
            format!("DELETE t FROM {from} WHERE t.{current} = 1 AND t.{begin} >= {at} AND {condition}"),
            format!(
                "UPDATE {from} SET t.{end} = {at}, t.{current} = 0 WHERE t.{current} = 1 AND {condition}"
            ),
        ])
    }

    /// Begins a version of each staged row that has none that is valid: at the moment, or where the last
    /// one ended, if that is later.
    pub(in super::super) fn begin_versions(&self, at: DateTime<Utc>) -> String {
        let (table, key, at) = (MYSQL.table(&self.table), self.by_key(), moment(at));
        let [begin, end, current] = columns();
        format!(
            "INSERT INTO {table} ({}, {begin}, {end}, {current}) SELECT {}, COALESCE((SELECT MAX(t.{end}) FROM {table} AS t \
             WHERE {key} AND t.{end} > {at}), {at}), NULL, 1 FROM {} AS s WHERE s.op = 0 AND NOT EXISTS \
             (SELECT 1 FROM {table} AS t WHERE {key} AND t.{current} = 1){}",
            self.names(),
            self.values(),
            self.staging(),
            self.in_order()
        )
    }
}

fn columns() -> [String; 3] {
    [VALID_FROM, VALID_TO, IS_CURRENT].map(|name| MYSQL.ident(name))
}

fn moment(at: DateTime<Utc>) -> String {
    format!("TIMESTAMP'{}'", at.format("%Y-%m-%d %H:%M:%S%.6f"))
}
