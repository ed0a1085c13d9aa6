//! The statements that keep every version of a row: what ends one, and what begins one.

use chrono::{DateTime, Utc};

use super::{STAGING, Statements, quoted};
use crate::connectors::sql::{Ended, POSTGRES};
use crate::target::{IS_CURRENT, VALID_FROM, VALID_TO};

impl Statements {
    /// Ends versions at a moment: those that began later were never valid, and go. `None` when no version
    /// can end in this way.
    pub(in super::super) fn end_versions(&self, at: DateTime<Utc>, which: Ended) -> Option<[String; 2]> {
        let table = quoted(&self.table);
        let (staged, condition) = match which {
            Ended::Deleted => (true, format!("s.op = 1 AND {}", self.by_key())),
            Ended::Changed => {
                let differences = self.differences(|index, _| self.value(index));
                if differences.is_empty() {
                    return None;
                }
                (true, format!("s.op = 0 AND {} AND ({})", self.by_key(), differences.join(" OR ")))
            }
            Ended::Others => {
                (false, format!("NOT EXISTS (SELECT FROM {STAGING} AS s WHERE {})", self.by_key()))
            }
        };
        let (using, from) = match staged {
            true => (format!(" USING {STAGING} AS s"), format!(" FROM {STAGING} AS s")),
            false => (String::new(), String::new()),
        };
        let [begin, end, current] = columns();
        let at = moment(at);
        Some([
            format!(
                "DELETE FROM {table} AS t{using} WHERE t.{current} AND t.{begin} >= {at} AND {condition}"
            ),
            format!(
                "UPDATE {table} AS t SET {end} = {at}, {current} = false{from} WHERE t.{current} AND {condition}"
            ),
        ])
    }

    /// Begins a version of each staged row that has none that is valid: at the moment, or where the last
    /// one ended, if that is later.
    pub(in super::super) fn begin_versions(&self, at: DateTime<Utc>) -> String {
        let (table, key, at) = (quoted(&self.table), self.by_key(), moment(at));
        let [begin, end, current] = columns();
        let names = POSTGRES.list(self.columns.iter().map(|column| &column.name));
        let values: Vec<_> = (0..self.columns.len()).map(|index| self.value(index)).collect();
        let overriding = if self.overriding { " OVERRIDING SYSTEM VALUE" } else { "" };
        format!(
            "INSERT INTO {table} ({names}, {begin}, {end}, {current}){overriding} SELECT {}, COALESCE((SELECT max(t.{end}) \
             FROM {table} AS t WHERE {key} AND t.{end} > {at}), {at}), NULL, true FROM {STAGING} AS s WHERE s.op = 0 \
             AND NOT EXISTS (SELECT FROM {table} AS t WHERE {key} AND t.{current})",
            values.join(", ")
        )
    }
}

fn columns() -> [String; 3] {
    [VALID_FROM, VALID_TO, IS_CURRENT].map(|name| POSTGRES.ident(name))
}

fn moment(at: DateTime<Utc>) -> String {
    format!("'{}Z'::timestamptz", at.format("%Y-%m-%dT%H:%M:%S%.6f"))
}
