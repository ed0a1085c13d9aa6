//! What a read will do: which cursor, from where, how far, and why.
//!
//! ```text
//! request + description ─▶ resolve ─▶ Resolved { columns, cursor, start } ─▶ ReadPlan for people
//!                                                                        └─▶ SQL for the reader
//! ```

use serde::{Deserialize, Serialize};

use super::describe::Described;
use super::types::{self, Kind};
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ChangeDetection, Extent, NullCursor, ReadPlan, ReadRequest};
use crate::table::CursorCandidate;

/// The format of our watermarks.
const VERSION: u32 = 1;
/// A position as it stands in the lake. Numbers are text, so that no reader rounds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    v: u32,
    #[serde(flatten)]
    pub(super) at: At,
}

/// Where a reading has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum At {
    /// Every change before this time (microseconds since 1970) was read.
    Timestamp { column: String, at: String },
    /// A first read under way: rows up to a row id were read; later changes will be found from `at` on.
    FirstRead { column: String, at: String, row_id: String },
    /// Every id or version up to this one was read; none when there was no row.
    Id { column: String, at: Option<String> },
    /// Every change that triggers wrote down, up to a number.
    Triggers {
        /// The table that they write to.
        changes: String,
        /// What is installed.
        stamp: String,
        /// What the table looked like.
        shape: String,
        reader: String,
        seq: String,
    },
    /// Everything was read; nothing to go on from.
    Full,
}

impl Position {
    /// What a watermark says, if it is one of ours.
    pub(super) fn read(watermark: &Watermark) -> Option<Self> {
        serde_json::from_str::<Self>(watermark.as_str()).ok().filter(|position| position.v == VERSION)
    }
}

impl At {
    pub(super) fn watermark(self) -> Watermark {
        let position = Position { v: VERSION, at: self };
        Watermark::new(serde_json::to_string(&position).expect("a position is plain JSON"))
    }
}

/// A column to read.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) declared: String,
    pub(super) kind: Kind,
    pub(super) nullable: bool,
}

/// How changes are found, with all that this way needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cursor {
    /// Times: a window up to a horizon.
    Time { column: String, kind: Kind, indexed: bool },
    /// Numbers that only grow.
    Number { column: String, indexed: bool },
    /// None: everything.
    Full,
}

/// Where a reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// From nothing.
    Whole,
    /// In a first read whose rows up to `row_id` are in the lake; the first attempt's horizon.
    Within { horizon: i64, row_id: i64 },
    /// After this position (for times: at it).
    After(i64),
}

/// A request that was held against the table that is there.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) columns: Vec<Column>,
    pub(super) cursor: Cursor,
    pub(super) start: Start,
    pub(super) plan: ReadPlan,
    /// The row id's name, where portions can follow it.
    pub(super) row_id: Option<&'static str>,
    /// About how many rows the table has.
    pub(super) table_rows: Option<u64>,
}

/// Decides everything that can be decided without reading rows.
pub(super) fn resolve(request: &ReadRequest, described: &Described) -> Result<Resolved> {
    let table = &described.table;
    let columns = columns(request, described)?;
    let fields: Vec<_> = columns.iter().map(|(_, field)| field.clone()).collect();
    let columns: Vec<Column> = columns.into_iter().map(|(column, _)| column).collect();
    let mut notes = Vec::new();
    let (change, cursor) = pick(request, described, &mut notes)?;
    let start = start(request, &cursor, &mut notes);

    if !matches!(cursor, Cursor::Full) && start == Start::Whole {
        notes.push(match request.null_cursor {
            NullCursor::Include => "first read: everything".into(),
            NullCursor::Exclude => "first read: everything but rows whose cursor is NULL".into(),
            NullCursor::Fail => "first read: everything; a NULL cursor stops it".to_owned(),
        });
    }
    if matches!(start, Start::Within { .. }) {
        notes.push("goes on with an unfinished first read".into());
    }
    let row_id = described.row_id;
    let resumable = request.keyed && matches!(cursor, Cursor::Time { .. }) && row_id.is_some();
    let whole = !matches!(start, Start::After(_));
    let (name, indexed) = match &cursor {
        Cursor::Time { column, indexed, .. } | Cursor::Number { column, indexed } => {
            (Some(column.clone()), *indexed)
        }
        Cursor::Full => (None, false),
    };
    let mut resolved = Resolved {
        columns,
        start,
        row_id,
        table_rows: table.rows,
        plan: ReadPlan {
            change,
            cursor: name,
            cursor_indexed: indexed,
            extent: if whole { Extent::Whole } else { Extent::Changed },
            resumable,
            continues: start != Start::Whole,
            notes,
            statement: String::new(),
            known_to: match (&cursor, start) {
                (Cursor::Time { .. }, Start::After(at)) => Some(at),
                _ => None,
            },
            rows: table.rows.filter(|_| start == Start::Whole),
            bytes: table.bytes.filter(|_| start == Start::Whole),
            schema: arrow::datatypes::Schema::new(fields).into(),
        },
        cursor,
    };
    let statement = resolved.select(request, &resolved.window(request, None), None);
    resolved.plan.statement = statement;
    Ok(resolved)
}

/// The columns that a request wants, and their fields.
pub(super) fn columns(
    request: &ReadRequest,
    described: &Described,
) -> Result<Vec<(Column, arrow::datatypes::Field)>> {
    let table = &described.table;
    let wanted: Vec<&str> = match &request.columns {
        Some(columns) => columns.iter().map(String::as_str).collect(),
        None => table.columns.iter().map(|column| column.name.as_str()).collect(),
    };
    for name in request.values.types.keys().chain(&request.key) {
        exists(described, name)?;
    }
    wanted
        .into_iter()
        .map(|name| {
            let at = exists(described, name)?;
            let there = &table.columns[at];
            let declared = &described.declared[at];
            let type_ = types::resolve(name, declared, &request.values)
                .map_err(|error| error.with("table", &table.id))?;
            let in_key = request.keyed && request.key.iter().any(|key| key == name);
            let nullable = there.field.is_nullable() && !in_key;
            let field = types::field(name, declared, &type_, nullable);
            let column =
                Column { name: name.to_owned(), declared: declared.clone(), kind: type_.kind, nullable };
            Ok((column, field))
        })
        .collect()
}

/// The place of a column, or an error that names a similar one.
fn exists(described: &Described, name: &str) -> Result<usize> {
    let columns = &described.table.columns;
    columns.iter().position(|column| column.name == name).ok_or_else(|| {
        let near = columns
            .iter()
            .map(|column| (strsim::jaro_winkler(&column.name.to_lowercase(), &name.to_lowercase()), column))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let error = Error::new(ErrorKind::Config, "column does not exist")
            .with("table", &described.table.id)
            .with("column", name);
        match near {
            Some((similarity, column)) if similarity > 0.7 => {
                error.hint(format!("did you mean `{}`?", column.name))
            }
            _ => error,
        }
    })
}

/// The change detection and its cursor, with the reason for the user.
fn pick(
    request: &ReadRequest,
    described: &Described,
    notes: &mut Vec<String>,
) -> Result<(ChangeDetection, Cursor)> {
    let table = &described.table;
    let named = request.cursor.as_deref();
    let by_name = || table.columns.iter().filter(|c| c.cursor == Some(CursorCandidate::Timestamp));
    let change = match (request.change, named) {
        (ChangeDetection::Auto, Some(name)) => {
            let at = exists(described, name)?;
            let kind = types::resolve(name, &described.declared[at], &request.values)?.kind;
            if kind.is_time() { ChangeDetection::Timestamp } else { ChangeDetection::Id }
        }
        (ChangeDetection::Auto, None) if by_name().next().is_some() => ChangeDetection::Timestamp,
        (ChangeDetection::Auto, None) => match &described.row_id_column {
            Some((_, true)) => ChangeDetection::Id,
            Some((column, false)) => {
                notes.push(format!("`{column}` is no cursor of its own accord: without AUTOINCREMENT, SQLite gives the id of a deleted last row to the next"));
                ChangeDetection::Full
            }
            None => ChangeDetection::Full,
        },
        (change, _) => change,
    };
    let cursor = match change {
        ChangeDetection::Timestamp => {
            // Of several, the indexed one, then the first.
            let picked =
                by_name().max_by_key(|column| (column.indexed, std::cmp::Reverse(position(table, column))));
            let name = named.or(picked.map(|column| column.name.as_str())).ok_or_else(|| {
                Error::new(ErrorKind::Config, "no timestamp column is kept up to date, by its name")
                    .with("table", &table.id)
                    .hint("name one with `cursor`, or use `change: full`")
            })?;
            time_cursor(request, described, name)?
        }
        ChangeDetection::Id | ChangeDetection::Version => {
            let own = described.row_id_column.as_ref().map(|(column, _)| column.as_str());
            let own = own.filter(|_| change == ChangeDetection::Id);
            let name = named.or(own).ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("`change: {}` needs a cursor column", change.name()))
                    .with("table", &table.id)
                    .hint("name a column of whole numbers with `cursor`")
            })?;
            number_cursor(request, described, name, change, notes)?
        }
        ChangeDetection::Rowversion
        | ChangeDetection::Tracking
        | ChangeDetection::Log
        | ChangeDetection::Temporal
        | ChangeDetection::Trigger => {
            return Err(crate::connectors::sql::foreign_change("sqlite", request));
        }
        ChangeDetection::Full | ChangeDetection::Auto => {
            notes.insert(
                0,
                match request.change {
                    ChangeDetection::Full => {
                        "reads everything each time: sees every change, deletes too".into()
                    }
                    _ => "no column tells what changed: reads everything each time, and sees deletes too"
                        .to_owned(),
                },
            );
            Cursor::Full
        }
    };
    if let Cursor::Time { column, indexed, .. } | Cursor::Number { column, indexed } = &cursor {
        let why = if named.is_some() { "as configured" } else { "by its name" };
        let served = if *indexed { "indexed" } else { "not indexed: each pass scans the table" };
        notes.insert(0, format!("changes by `{column}` ({why}, {served})"));
        if request.key.is_empty() || change == ChangeDetection::Timestamp {
            notes.push("deletes leave no trace in a cursor; `change: full` sees them".into());
        }
    }
    Ok((change, cursor))
}

fn position(table: &crate::table::TableDescription, column: &crate::table::ColumnDescription) -> usize {
    table.columns.iter().position(|there| there.name == column.name).unwrap_or(usize::MAX)
}

fn time_cursor(request: &ReadRequest, described: &Described, name: &str) -> Result<Cursor> {
    let at = exists(described, name)?;
    let declared = &described.declared[at];
    let kind = types::resolve(name, declared, &request.values)?.kind;
    if !kind.is_time() {
        return Err(Error::new(ErrorKind::Config, format!("a column declared `{declared}` holds no timestamps"))
            .with("table", &described.table.id)
            .with("column", name)
            .hint(format!("say what it holds: `values: {{types: {{{name}: timestamp}}}}`, or `unix_seconds`, `unix_milliseconds`; or use `change: id` for a number that only grows")));
    }
    Ok(Cursor::Time { column: name.to_owned(), kind, indexed: described.table.columns[at].indexed })
}

fn number_cursor(
    request: &ReadRequest,
    described: &Described,
    name: &str,
    change: ChangeDetection,
    notes: &mut Vec<String>,
) -> Result<Cursor> {
    let at = exists(described, name)?;
    let declared = &described.declared[at];
    if types::resolve(name, declared, &request.values)?.kind != Kind::Integer {
        return Err(Error::new(
            ErrorKind::Config,
            format!("a column declared `{declared}` holds no whole numbers"),
        )
        .with("table", &described.table.id)
        .with("column", name)
        .hint("a cursor of this kind is an INTEGER that only grows"));
    }
    if change == ChangeDetection::Id {
        notes.push(
            "an id sees inserts only: updates and deletes stay unseen; `change: full` sees them".into(),
        );
        if described.row_id_column.as_ref().is_some_and(|(column, counts_up)| column == name && !counts_up) {
            notes.push(format!("`{name}` is not AUTOINCREMENT: when the last rows are deleted between two passes, their ids are given again and those rows stay unseen"));
        }
    }
    Ok(Cursor::Number { column: name.to_owned(), indexed: described.table.columns[at].indexed })
}

/// Reads the watermark; one that is of no use starts over, with the reason for the user.
fn start(request: &ReadRequest, cursor: &Cursor, notes: &mut Vec<String>) -> Start {
    let Some(from) = &request.from else { return Start::Whole };
    let Some(Position { at, .. }) = Position::read(from) else {
        notes.push("the stored position is not one of sqlite: reads everything anew".into());
        return Start::Whole;
    };
    let found = match (&at, cursor) {
        (At::Full, Cursor::Full) => return Start::Whole,
        (At::Timestamp { column, at }, Cursor::Time { column: cursor, .. }) if column == cursor => {
            at.parse().ok().map(Start::After)
        }
        (At::FirstRead { column, at, row_id }, Cursor::Time { column: cursor, .. }) if column == cursor => {
            match (at.parse(), row_id.parse()) {
                (Ok(horizon), Ok(row_id)) => Some(Start::Within { horizon, row_id }),
                _ => None,
            }
        }
        (At::Id { column, at }, Cursor::Number { column: cursor, .. }) if column == cursor => match at {
            Some(at) => at.parse().ok().map(Start::After),
            None => Some(Start::After(i64::MIN)),
        },
        _ => None,
    };
    found.unwrap_or_else(|| {
        notes.push("the stored position is of another cursor: reads everything anew".into());
        Start::Whole
    })
}

/// How far behind the watermark to read again, in microseconds.
pub(super) fn lag(request: &ReadRequest) -> i64 {
    i64::try_from(request.lag.as_micros()).unwrap_or(i64::MAX)
}
