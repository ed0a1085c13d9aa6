//! Picks how changes of a table are found, and says why.
//!
//! `auto` goes by what loses least: Change Tracking sees everything, a row version all but deletes, a
//! timestamp what its writers set, a key what is new. What is left is to read the table each time.

use super::discover::{Column, Relation};
use super::types::TypeOf;
use crate::connectors::sql::named_for_change;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ChangeDetection, ReadRequest};
use crate::table::CursorCandidate;

/// What was picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// Never `Auto`.
    pub(super) change: ChangeDetection,
    pub(super) cursor: Option<Cursor>,
    pub(super) notes: Vec<String>,
}

/// A cursor column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) name: String,
    pub(super) of: TypeOf,
    pub(super) order: Order,
    pub(super) not_null: bool,
    pub(super) indexed: bool,
}

/// What a cursor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Time,
    /// A number, as from an identity.
    Number,
    /// A row version.
    Version,
}

impl Cursor {
    fn of(column: &Column) -> Option<Self> {
        let order = match column.of.base.as_str() {
            "datetime" | "smalldatetime" | "datetime2" | "datetimeoffset" => Order::Time,
            "tinyint" | "smallint" | "int" | "bigint" => Order::Number,
            "timestamp" => Order::Version,
            _ => return None,
        };
        Some(Self {
            name: column.name.clone(),
            of: column.of.clone(),
            order,
            not_null: column.not_null || order == Order::Version,
            indexed: column.indexed,
        })
    }
}

/// What the request says, else what the catalog offers. `snapshot` says whether the database allows
/// SNAPSHOT isolation, without which Change Tracking cannot be read correctly.
pub(super) fn choose(relation: &Relation, request: &ReadRequest, snapshot: bool) -> Result<Choice> {
    let plain =
        |change, note: Option<String>| Ok(Choice { change, cursor: None, notes: note.into_iter().collect() });
    match request.change {
        ChangeDetection::Full => return plain(ChangeDetection::Full, None),
        ChangeDetection::Tracking => {
            return match untracked(relation, request, snapshot) {
                None => plain(ChangeDetection::Tracking, None),
                Some((why, remedy)) => {
                    Err(Error::new(ErrorKind::Config, why).with("table", &relation.id).hint(remedy))
                }
            };
        }
        ChangeDetection::Auto
            if request.cursor.is_none()
                && relation.tracked
                && untracked(relation, request, snapshot).is_none() =>
        {
            let note = "changes are found by Change Tracking, which is on: deletes are seen too".to_owned();
            return plain(ChangeDetection::Tracking, Some(note));
        }
        _ => {}
    }
    let mut choice = match &request.cursor {
        Some(name) => named(relation, request, name)?,
        None => found(relation, request)?,
    };
    if relation.tracked && request.change == ChangeDetection::Auto && request.cursor.is_none() {
        let why = untracked(relation, request, snapshot);
        choice
            .notes
            .extend(why.map(|(why, remedy)| format!("Change Tracking is on and not used: {why}; {remedy}")));
    }
    let Some(cursor) = &choice.cursor else { return Ok(choice) };
    if !cursor.indexed {
        choice.notes.push(format!(
            "no index begins with `{}`: every pass reads the whole table to find what changed",
            cursor.name
        ));
    }
    if request.keyed {
        let name = &cursor.name;
        choice.notes.push(match choice.change {
            ChangeDetection::Id => format!(
                "`{name}` finds new rows only: updates and deletes are not seen; use `change: full`, or switch Change Tracking on"
            ),
            _ => "deletes leave no trace in a cursor; `change: tracking` and `change: full` see them".to_owned(),
        });
    }
    Ok(choice)
}

/// Why Change Tracking cannot be used, and what to do.
fn untracked(relation: &Relation, request: &ReadRequest, snapshot: bool) -> Option<(String, String)> {
    let table = relation.quoted();
    if !relation.tracked {
        return Some((
            "Change Tracking is not on for this table".to_owned(),
            format!(
                "run `ALTER DATABASE CURRENT SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON)` once, then `ALTER TABLE {table} ENABLE CHANGE_TRACKING`"
            ),
        ));
    }
    if !snapshot {
        return Some((
            "Change Tracking is only right under SNAPSHOT isolation, which the database does not allow"
                .to_owned(),
            "run `ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON`".to_owned(),
        ));
    }
    let own = relation.primary_key().unwrap_or_default();
    let same = own.len() == request.key.len() && own.iter().all(|column| request.key.contains(column));
    if !request.keyed || !same {
        return Some((
            "Change Tracking names rows by the primary key, and the stream goes by another key, or by none"
                .to_owned(),
            format!("use `mode: merge` with `primary_key: [{}]`", own.join(", ")),
        ));
    }
    None
}

fn named(relation: &Relation, request: &ReadRequest, name: &str) -> Result<Choice> {
    let column = relation.named(name)?;
    let refuse = |message: String| {
        let error = Error::new(ErrorKind::Config, message).with("column", name).with("table", &relation.id);
        let offers = offers(relation);
        if offers.is_empty() {
            error.hint("use `change: full`")
        } else {
            error.hint(format!("candidates are {offers}"))
        }
    };
    let Some(cursor) = Cursor::of(column) else {
        return Err(refuse(format!("a column of type {} cannot be a cursor", column.of.written())));
    };
    use ChangeDetection as C;
    let change = match (request.change, cursor.order) {
        (C::Auto | C::Timestamp, Order::Time) => C::Timestamp,
        (C::Version, Order::Number) => C::Version,
        (C::Auto | C::Id, Order::Number) => C::Id,
        (C::Auto | C::Rowversion, Order::Version) => C::Rowversion,
        (wanted, _) => {
            return Err(refuse(format!(
                "`change: {}` does not go with a column of type {}",
                wanted.name(),
                column.of.written()
            )));
        }
    };
    Ok(Choice { change, cursor: Some(cursor), notes: Vec::new() })
}

fn found(relation: &Relation, request: &ReadRequest) -> Result<Choice> {
    use ChangeDetection as C;
    let best = relation
        .columns
        .iter()
        .filter_map(|column| {
            let cursor = Cursor::of(column)?;
            let (rank, change) = match (relation.candidate(column), cursor.order) {
                (Some(CursorCandidate::Version), _) => (3, C::Rowversion),
                (Some(CursorCandidate::Timestamp), _) => (2, C::Timestamp),
                (Some(CursorCandidate::Id), _) => (1, C::Id),
                (None, Order::Number) if request.change == C::Version && is_version(column) => {
                    (0, C::Version)
                }
                (None, _) => return None,
            };
            let wanted = matches!(request.change, C::Auto) || request.change == change;
            wanted.then_some((rank, change, cursor, column))
        })
        .max_by_key(|(rank, _, cursor, column)| {
            let name = std::cmp::Reverse(named_for_change(&column.name));
            (*rank, name, cursor.indexed, std::cmp::Reverse(column.number))
        });
    let Some((_, change, cursor, _)) = best else {
        if request.change == C::Auto {
            let note = "no column tells what changed: the whole table is read in every pass".to_owned();
            return Ok(Choice { change: C::Full, cursor: None, notes: vec![note] });
        }
        let message = format!("no column can serve `change: {}`", request.change.name());
        return Err(Error::new(ErrorKind::Config, message)
            .with("table", &relation.id)
            .hint("name it as `cursor`, or use `change: full`"));
    };
    let indexed = if cursor.indexed { "an index serves it" } else { "no index serves it" };
    let why = match change {
        C::Rowversion => "every change raises it",
        C::Timestamp => "by its name every change sets it",
        C::Version => "by its name every change raises it",
        _ => "it is an increasing key",
    };
    let note = format!("changes are found by `{}`: {why}, {indexed}", cursor.name);
    Ok(Choice { change, cursor: Some(cursor), notes: vec![note] })
}

/// A version column is only believed when the user asks for one: it has to grow over the whole table.
fn is_version(column: &Column) -> bool {
    let name = column.name.to_ascii_lowercase();
    name == "version" || name.ends_with("_version")
}

fn offers(relation: &Relation) -> String {
    let names = relation.columns.iter().filter(|column| relation.candidate(column).is_some());
    names.map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", ")
}
