//! Picks how changes of a table are found, and says why.
//!
//! `auto` goes by what loses least: a timestamp that the server sets with every change, then one that by its
//! name is kept up to date, then a key that counts by itself. What is left is to read the table each time.

use super::discover::{Column, Relation};
use super::types::TypeOf;
use crate::connectors::sql::{foreign_change, named_for_change};
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
    Number,
}

impl Cursor {
    fn of(column: &Column) -> Option<Self> {
        let order = match column.of.base.as_str() {
            "datetime" | "timestamp" => Order::Time,
            // Positions are counted in 64 bits with a sign.
            "bigint" if column.of.unsigned && !column.identity => return None,
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => Order::Number,
            _ => return None,
        };
        Some(Self {
            name: column.name.clone(),
            of: column.of.clone(),
            order,
            not_null: column.not_null,
            indexed: column.indexed,
        })
    }
}

/// What the request says, else what the catalog offers.
pub(super) fn choose(relation: &Relation, request: &ReadRequest) -> Result<Choice> {
    use ChangeDetection as C;
    match request.change {
        C::Full => return Ok(Choice { change: C::Full, cursor: None, notes: Vec::new() }),
        C::Auto | C::Timestamp | C::Version | C::Id => {}
        _ => return Err(foreign_change("MySQL and MariaDB", request)),
    }
    let mut choice = match &request.cursor {
        Some(name) => named(relation, request, name)?,
        None => found(relation, request)?,
    };
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
            C::Id => format!(
                "`{name}` finds new rows only: updates and deletes are not seen; use `change: full`, or name a timestamp as `cursor`"
            ),
            _ => "deletes leave no trace in a cursor; `change: full` sees them".to_owned(),
        });
    }
    Ok(choice)
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
            let (rank, change) = match relation.candidate(column) {
                Some(CursorCandidate::Timestamp) if column.follows_changes => (3, C::Timestamp),
                Some(CursorCandidate::Timestamp) => (2, C::Timestamp),
                Some(CursorCandidate::Id) => (1, C::Id),
                None if request.change == C::Version && is_version(&cursor) => (0, C::Version),
                _ => return None,
            };
            let wanted = matches!(request.change, C::Auto) || request.change == change;
            wanted.then_some((rank, change, cursor, column))
        })
        .max_by_key(|(rank, _, cursor, column)| {
            let name = std::cmp::Reverse(named_for_change(&column.name));
            (*rank, cursor.indexed, name, std::cmp::Reverse(column.number))
        });
    let Some((rank, change, cursor, _)) = best else {
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
    let why = match (change, rank) {
        (C::Timestamp, 3) => "the server sets it with every change",
        (C::Timestamp, _) => "by its name every change sets it",
        (C::Version, _) => "by its name every change raises it",
        _ => "it is an increasing key",
    };
    let note = format!("changes are found by `{}`: {why}, {indexed}", cursor.name);
    Ok(Choice { change, cursor: Some(cursor), notes: vec![note] })
}

/// A version column is only believed when the user asks for one: it has to grow over the whole table.
fn is_version(cursor: &Cursor) -> bool {
    let name = cursor.name.to_ascii_lowercase();
    cursor.order == Order::Number && (name == "version" || name.ends_with("_version"))
}

fn offers(relation: &Relation) -> String {
    let names = relation.columns.iter().filter(|column| relation.candidate(column).is_some());
    names.map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", ")
}
