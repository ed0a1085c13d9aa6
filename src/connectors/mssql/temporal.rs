//! System-versioned tables: what changed, by the periods of the rows and of their history.
//!
//! ```text
//! rows that begin in [W, H)     ─┐
//!                                ├─ keys ─▶ LEFT JOIN the table ─▶ the row as it is, or a delete
//! history that ends in [W, H)   ─┘
//! ```
//!
//! A period begins with the *begin* of the transaction that wrote the row, in UTC: a row can appear with
//! an older begin than one that was read before. So only what lies below the begin of the earliest open
//! transaction is believed, as with any time. Both halves and the join are read in one SNAPSHOT.
//!
//! What is not in the history was not seen: rows that retention has removed, and what happened while
//! versioning was off. The first is noticed, and the table is read whole; the second leaves no trace.

use super::discover::{Relation, number, text};
use super::position::Ticks;
use super::types::TypeOf;
use crate::clients::mssql::Session;
use crate::connectors::sql::MSSQL;
use crate::error::Result;
use crate::table::TableId;

const TICKS_A_DAY: i64 = 864_000_000_000;

/// Where a table's past is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct History {
    pub(super) object: i32,
    table: TableId,
    start: String,
    end: String,
    /// Digits of a second in the period.
    scale: u8,
    /// For how many days it is kept at least; `None` for ever.
    days: Option<i64>,
}

impl History {
    /// The type of the period's columns.
    pub(super) fn of(&self) -> TypeOf {
        TypeOf { base: "datetime2".to_owned(), scale: self.scale, ..TypeOf::default() }
    }

    /// Why one cannot go on from a moment; `None` when one can.
    pub(super) fn refuses(&self, object: i64, from: Ticks, now: Ticks) -> Option<&'static str> {
        if object != i64::from(self.object) {
            return Some("the table has another history than it had then");
        }
        let forgotten =
            self.days.is_some_and(|days| from.0 < now.0.saturating_sub(days.saturating_mul(TICKS_A_DAY)));
        forgotten.then_some("the history before it was removed by its retention")
    }
}

/// Where the past of a system-versioned table is kept.
pub(super) async fn history(session: &mut Session, object: i32) -> Result<Option<History>> {
    // Retention came with version 2017; Azure has it.
    let keeps = session.server().version != 13;
    let (period, unit) = match keeps {
        true => ("t.history_retention_period", "t.history_retention_period_unit"),
        false => ("-1", "-1"),
    };
    let sql = format!(
        "SELECT h.object_id, SCHEMA_NAME(h.schema_id) AS history_schema, h.name AS history_name, b.name AS begins, \
         e.name AS ends, CAST(b.scale AS int) AS digits, CAST({period} AS int) AS period, CAST({unit} AS int) AS unit \
         FROM sys.tables AS t INNER JOIN sys.tables AS h ON h.object_id = t.history_table_id \
         INNER JOIN sys.periods AS p ON p.object_id = t.object_id \
         INNER JOIN sys.columns AS b ON b.object_id = t.object_id AND b.column_id = p.start_column_id \
         INNER JOIN sys.columns AS e ON e.object_id = t.object_id AND e.column_id = p.end_column_id \
         WHERE t.object_id = {object}"
    );
    Ok(session.rows(&sql).await?.first().map(|row| History {
        object: number(row, 0),
        table: TableId::new(text(row, 1), text(row, 2)),
        start: text(row, 3),
        end: text(row, 4),
        scale: number(row, 5) as u8,
        days: days(number(row, 6), number(row, 7)),
    }))
}

/// A retention in days, rounded down.
fn days(period: i32, unit: i32) -> Option<i64> {
    let days = match unit {
        3 => 1,
        4 => 7,
        5 => 28,
        6 => 365,
        _ => return None,
    };
    (period >= 0).then(|| i64::from(period) * days)
}

/// Where the keys come from that changed in `[from, to)`.
///
/// A key that differs from another only in a way that its collation overlooks is another key in the lake:
/// its bytes go along, so that neither the union nor the join takes one for the other.
pub(super) fn changed_keys(relation: &Relation, history: &History, from: Ticks, to: Ticks) -> String {
    let keys = relation.primary_key().unwrap_or_default();
    let mut list: Vec<String> = keys.iter().map(|name| MSSQL.ident(name)).collect();
    let bytes = keys.iter().enumerate().filter(|(_, name)| relation.is_text(name));
    list.extend(bytes.map(|(at, name)| format!("{} AS [frazil {at}]", relation.exact("", name))));
    let list = list.join(", ");
    let within = |column: &str| {
        let column = MSSQL.ident(column);
        let (from, to) = (from.literal(&history.of()), to.literal(&history.of()));
        format!("{column} >= {from} AND {column} < {to}")
    };
    format!(
        "(SELECT {list} FROM {} WHERE {} UNION SELECT {list} FROM {} WHERE {})",
        relation.quoted(),
        within(&history.start),
        MSSQL.table(&history.table),
        within(&history.end),
    )
}

/// How a row is found for a changed key.
pub(super) fn same_key(relation: &Relation) -> String {
    let keys = relation.primary_key().unwrap_or_default();
    let equal = keys.iter().map(|name| format!("t.{0} = ct.{0}", MSSQL.ident(name)));
    let same = keys.iter().enumerate().filter(|(_, name)| relation.is_text(name));
    let same = same.map(|(at, name)| format!("{} = ct.[frazil {at}]", relation.exact("t.", name)));
    equal.chain(same).collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests;
