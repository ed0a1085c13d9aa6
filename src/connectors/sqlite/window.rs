//! The statement that finds the rows of a window, wide enough for the reader to decide exactly.

use super::decode;
use super::describe::MAIN;
use super::plan::{Cursor, Resolved, Start, lag};
use super::types::Kind;
use super::value::{self, DAY, SECOND};
use crate::connectors::sql::SQLITE;
use crate::source::{BeyondHorizon, NullCursor, ReadRequest};

/// The farthest that a written time may be from UTC, by SQLite's own functions.
const FARTHEST_OFFSET: i64 = 14 * 3600 * SECOND;

/// What the reader must find true of a row: in SQL, and exactly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// The condition, wide enough; empty for everything.
    pub(super) sql: String,
    /// For times: the exact bounds, `from <= cursor < to`, in microseconds.
    pub(super) times: Option<(i64, i64)>,
}

impl Resolved {
    /// The window up to a horizon, the first moment not to read (`None`: not known yet).
    pub(super) fn window(&self, request: &ReadRequest, horizon: Option<i64>) -> Window {
        match &self.cursor {
            Cursor::Full => Window::default(),
            Cursor::Number { column, .. } => {
                let name = SQLITE.ident(column);
                let ranges = match self.start {
                    // Text and bytes sort behind all numbers; they must not slip by unseen. One
                    // transaction reads the highest number and the rows, so no upper bound is needed.
                    Start::After(from) => vec![format!("{name} > {from}"), format!("{name} >= ''")],
                    _ => Vec::new(),
                };
                Window { sql: self.condition(request, &name, ranges), times: None }
            }
            Cursor::Time { column, kind, indexed } => {
                let name = SQLITE.ident(column);
                let lag = if request.keyed { lag(request) } else { 0 };
                let from = match self.start {
                    Start::After(from) => from.saturating_sub(lag),
                    _ => i64::MIN,
                };
                // A keyed first read takes all that is visible: what lies beyond is read again later.
                let bounded = self.start_is_after() || !request.keyed;
                // A date is its own day's horizon for all of that day.
                let early = request.beyond_horizon == BeyondHorizon::Read || *kind == Kind::Date;
                let open = request.keyed && early;
                let to = match horizon {
                    Some(horizon) if bounded && !open => horizon,
                    _ => i64::MAX,
                };
                if from == i64::MIN && to == i64::MAX {
                    return Window { sql: self.condition(request, &name, Vec::new()), times: None };
                }
                let ranges = time_ranges(&name, *kind, *indexed, from, to);
                Window { sql: self.condition(request, &name, ranges), times: Some((from, to)) }
            }
        }
    }

    /// How many rows, at most `limit`, have a time in `from <= time < to`. For times only.
    pub(super) fn count_times(
        &self,
        database: &rusqlite::Connection,
        request: &ReadRequest,
        from: i64,
        to: i64,
        limit: usize,
    ) -> rusqlite::Result<usize> {
        let Cursor::Time { column, kind, indexed } = &self.cursor else { return Ok(0) };
        let name = SQLITE.ident(column);
        let condition = self.any_of(request, time_ranges(&name, *kind, *indexed, from, to));
        let table = SQLITE.ident(&request.table.name);
        let mut statement =
            database.prepare(&format!("SELECT {name} FROM {MAIN}.{table} WHERE {condition}"))?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while count < limit
            && let Some(row) = rows.next()?
        {
            let stamp = decode::stamp(row.get_ref(0)?, *kind);
            count += usize::from(stamp.is_some_and(|stamp| from <= stamp.micros && stamp.micros < to));
        }
        Ok(count)
    }

    fn start_is_after(&self) -> bool {
        matches!(self.start, Start::After(_))
    }

    /// The rows of any range, and what the policy says of NULL cursors; no range means every row.
    fn condition(&self, request: &ReadRequest, name: &str, mut ranges: Vec<String>) -> String {
        let wanted = match request.null_cursor {
            NullCursor::Include => !self.start_is_after() || request.keyed,
            NullCursor::Exclude => false,
            // They come through, and the reader stops at them.
            NullCursor::Fail => true,
        };
        match (ranges.is_empty(), wanted) {
            (true, true) => return String::new(),
            (true, false) => return format!("{name} IS NOT NULL"),
            (false, true) => ranges.push(format!("{name} IS NULL")),
            (false, false) => {}
        }
        self.any_of(request, ranges)
    }

    /// Rows in any of the ranges. After a position these are few, and an index finds each range: then
    /// row ids are collected first. The planner would rather scan than follow so many alternatives.
    fn any_of(&self, request: &ReadRequest, ranges: Vec<String>) -> String {
        let few = self.plan.cursor_indexed && self.start_is_after();
        match self.row_id {
            Some(row_id) if few => {
                let table = SQLITE.ident(&request.table.name);
                let each: Vec<_> = ranges
                    .iter()
                    .map(|range| format!("SELECT {row_id} FROM {MAIN}.{table} WHERE {range}"))
                    .collect();
                format!("{row_id} IN ({})", each.join(" UNION ALL "))
            }
            _ => ranges.into_iter().map(|range| format!("({range})")).collect::<Vec<_>>().join(" OR "),
        }
    }

    /// The statement for a window, and a range of row ids within it. For times, the cursor is read
    /// once more as the last column, so that its exact value decides.
    pub(super) fn select(&self, request: &ReadRequest, window: &Window, range: Option<&str>) -> String {
        let mut list = SQLITE.list(self.columns.iter().map(|column| &column.name));
        if let (Cursor::Time { column, .. } | Cursor::Number { column, .. }, true) =
            (&self.cursor, self.checks_cursor(request, window))
        {
            list = format!("{list}, {}", SQLITE.ident(column));
        }
        let mut conditions = Vec::new();
        if !window.sql.is_empty() {
            conditions.push(format!("({})", window.sql));
        }
        conditions.extend(range.map(str::to_owned));
        if let Some(filter) = &request.filter {
            // A line of its own: the condition may end in a comment.
            conditions.push(format!("({filter}\n)"));
        }
        let condition = if conditions.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", conditions.join(" AND "))
        };
        format!("SELECT {list} FROM {MAIN}.{}{condition}", SQLITE.ident(&request.table.name))
    }

    /// Whether the reader must look at each row's cursor.
    pub(super) fn checks_cursor(&self, request: &ReadRequest, window: &Window) -> bool {
        match self.cursor {
            Cursor::Full => false,
            Cursor::Time { .. } => true,
            Cursor::Number { .. } => request.null_cursor == NullCursor::Fail || !window.sql.is_empty(),
        }
    }
}

/// All rows whose time may lie in `from <= time < to`, and all whose cursor is no time at all, so that
/// the reader sees and names them. Served by an index on the column.
///
/// Text compares as text, so the bounds are cut to minutes: `2024-01-31 12:34` is a prefix of all
/// ways to write that minute. `T` and blank are two ranges. Times written with an offset from UTC
/// lie up to 14 hours elsewhere; they are found by a wider range.
fn time_ranges(name: &str, kind: Kind, indexed: bool, from: i64, to: i64) -> Vec<String> {
    match kind {
        Kind::Unix { per_second } => {
            let unit = SECOND / per_second;
            let mut terms = Vec::new();
            if from != i64::MIN {
                terms.push(format!("{name} >= {}", from.div_euclid(unit)));
            }
            if to != i64::MAX {
                terms.push(format!("{name} <= {}", to.div_euclid(unit)));
            }
            vec![terms.join(" AND "), format!("{name} >= ''")]
        }
        _ => {
            let minute = |micros: i64, separator: char| -> Option<String> {
                let mut text = String::new();
                value::write_timestamp(&mut text, micros.div_euclid(60 * SECOND).checked_mul(60 * SECOND)?)?;
                // A year that is not written with four digits has no place in the order of texts.
                (text.len() == 19).then(|| text[..16].replace(' ', &separator.to_string()))
            };
            let day = |micros: i64| minute(micros, ' ').map(|text| text[..10].to_owned());
            let lower = |separator| {
                let text = minute(from, separator)?;
                // At midnight the date alone is the same time, and sorts before it.
                Some(if from.rem_euclid(DAY) < 60 * SECOND { text[..10].to_owned() } else { text })
            };
            let upper = |separator| minute(to.checked_add(60 * SECOND)?, separator);
            let between = |low: Option<String>, high: Option<String>| match (low, high) {
                (Some(low), Some(high)) => format!("{name} >= '{low}' AND {name} < '{high}'"),
                (Some(low), None) => format!("{name} >= '{low}'"),
                (None, Some(high)) => format!("{name} < '{high}'"),
                (None, None) => format!("{name} IS NOT NULL"),
            };
            let mut ranges = vec![between(lower(' '), upper(' ')), between(lower('T'), upper('T'))];
            let wide = between(
                from.checked_sub(FARTHEST_OFFSET).and_then(day),
                to.checked_add(FARTHEST_OFFSET + DAY).and_then(day),
            );
            ranges.push(format!("{wide} AND substr({name}, 17) GLOB '*[-+]*'"));
            // Numbers and odd text sort before '0-', bytes and most words behind ':'. (A bare '0' would
            // be taken for a number.) Without an index each row is looked at anyway.
            ranges.push(format!("{name} < '0-'"));
            ranges.push(format!("{name} >= ':'"));
            if !indexed {
                let day = "[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]*";
                ranges.push(format!("{name} NOT GLOB '{day}'"));
            }
            ranges
        }
    }
}
