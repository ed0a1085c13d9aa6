//! Picks how changes of a table are found, and says why.

use super::discover::{Column, Relation};
use crate::connectors::sql::{foreign_change, named_for_change};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ChangeDetection, ReadRequest};
use crate::table::CursorCandidate;

/// What was picked.
#[derive(Debug, Clone)]
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
    /// Its base type: `timestamptz`, `timestamp`, `date`, or an integer.
    pub(super) base: String,
    pub(super) order: Order,
    pub(super) not_null: bool,
    pub(super) indexed: bool,
}

/// What a cursor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Time, with so many digits of a second.
    Time { digits: u32 },
    /// A number from a sequence.
    Number,
}

impl Cursor {
    fn of(relation: &Relation, column: &Column) -> Option<Self> {
        let base = relation.types.base_name(column.of);
        let modifier = relation.types.base(column.of).modifier;
        let order = match base {
            // `timestamp(3)` has the modifier 3, plain `timestamp` has none and six digits.
            "timestamp" | "timestamptz" => Order::Time { digits: u32::try_from(modifier).unwrap_or(6) },
            "date" => Order::Time { digits: 0 },
            "int2" | "int4" | "int8" => Order::Number,
            _ => return None,
        };
        Some(Self {
            name: column.name.clone(),
            base: base.to_owned(),
            order,
            not_null: column.not_null && relation.has_constraints(),
            indexed: column.indexed,
        })
    }
}

/// What the request says, else what the catalog offers: a timestamp that by its name is kept up to
/// date, then an increasing key, then everything.
pub(super) fn choose(relation: &Relation, request: &ReadRequest) -> Result<Choice> {
    if request.change == ChangeDetection::Full {
        return Ok(Choice { change: ChangeDetection::Full, cursor: None, notes: Vec::new() });
    }
    use ChangeDetection::{Rowversion, Temporal, Tracking};
    if matches!(request.change, Rowversion | Tracking | Temporal) {
        return Err(foreign_change("postgres", request));
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
    if choice.change == ChangeDetection::Id && request.keyed {
        choice.notes.push(format!(
            "`{}` finds new rows only: updates and deletes are not seen; use `change: full`, or a timestamp that every update sets",
            cursor.name
        ));
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
    let Some(cursor) = Cursor::of(relation, column) else {
        return Err(refuse(format!("a column of type {} cannot be a cursor", column.written)));
    };
    let change = match (request.change, cursor.order) {
        (ChangeDetection::Auto | ChangeDetection::Timestamp, Order::Time { .. }) => {
            ChangeDetection::Timestamp
        }
        (ChangeDetection::Version, Order::Number) => ChangeDetection::Version,
        (ChangeDetection::Auto | ChangeDetection::Id, Order::Number) => ChangeDetection::Id,
        (wanted, _) => {
            return Err(refuse(format!(
                "`change: {}` does not go with a column of type {}",
                wanted.name(),
                column.written
            )));
        }
    };
    Ok(Choice { change, cursor: Some(cursor), notes: Vec::new() })
}

fn found(relation: &Relation, request: &ReadRequest) -> Result<Choice> {
    let time = request.change != ChangeDetection::Id && request.change != ChangeDetection::Version;
    let number = request.change != ChangeDetection::Timestamp;
    let best = relation
        .columns
        .iter()
        .filter_map(|column| {
            let candidate =
                relation.candidate(column).or_else(|| asked_version(relation, column, request))?;
            let wanted = match candidate {
                CursorCandidate::Timestamp => time,
                CursorCandidate::Id => number && request.change != ChangeDetection::Version,
                CursorCandidate::Version => request.change == ChangeDetection::Version,
            };
            wanted.then_some((candidate, column))
        })
        .max_by_key(|(candidate, column)| {
            let name = std::cmp::Reverse(named_for_change(&column.name));
            (*candidate, name, column.indexed, std::cmp::Reverse(column.number))
        });
    let Some((candidate, column)) = best else {
        if request.change == ChangeDetection::Auto {
            let note = "no column tells what changed: the whole table is read in every pass".to_owned();
            return Ok(Choice { change: ChangeDetection::Full, cursor: None, notes: vec![note] });
        }
        let message = format!("no column can serve `change: {}`", request.change.name());
        return Err(Error::new(ErrorKind::Config, message)
            .with("table", &relation.id)
            .hint("name it as `cursor`, or use `change: full`"));
    };
    let cursor = Cursor::of(relation, column).expect("candidates have the type of a cursor");
    let indexed = if cursor.indexed { "an index serves it" } else { "no index serves it" };
    let (change, why) = match candidate {
        CursorCandidate::Timestamp => (ChangeDetection::Timestamp, "by its name every change sets it"),
        CursorCandidate::Version => (ChangeDetection::Version, "by its name every change raises it"),
        CursorCandidate::Id => (ChangeDetection::Id, "it is an increasing key"),
    };
    let note = format!("changes are found by `{}`: {why}, {indexed}", cursor.name);
    Ok(Choice { change, cursor: Some(cursor), notes: vec![note] })
}

/// A version column is only believed when the user asks for one: it has to grow over the whole table.
fn asked_version(relation: &Relation, column: &Column, request: &ReadRequest) -> Option<CursorCandidate> {
    let name = column.name.to_ascii_lowercase();
    let versioned =
        request.change == ChangeDetection::Version && (name == "version" || name.ends_with("_version"));
    (versioned && Cursor::of(relation, column)?.order == Order::Number).then_some(CursorCandidate::Version)
}

fn offers(relation: &Relation) -> String {
    let names = relation.columns.iter().filter(|column| relation.candidate(column).is_some());
    names.map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", ")
}
