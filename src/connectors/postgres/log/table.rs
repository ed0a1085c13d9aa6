//! What the rows of the log look like, held against what the table looks like now.
//!
//! A message names the columns of its rows as they were then. They are the columns of the last pass, or
//! those of today; whatever else they are, and whatever the log does not tell (the values that an added
//! column was filled with, a partition that was attached with its rows), is answered by reading the table.
//!
//! Columns are found by their number in the catalog, which a rename leaves as it is.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::super::codec::Codec;
use super::super::discover::{self, Relation};
use super::super::numeric;
use super::pgoutput::{self, Tuple, Value};
use crate::connectors::sql::{NULL, UNCHANGED, missing_column};
use crate::error::{Error, ErrorKind, Result};
use crate::source::ReadRequest;
use crate::table::TableKind;

/// Why the log cannot be followed here, and the table has to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Broken(pub(in super::super) String);

/// A table as a position remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Described {
    oid: u32,
    /// What made it a part of the publication: taken out and put back, it has another one.
    entry: String,
    /// `number:type:modifier:name` of each column that the log has.
    columns: Vec<String>,
    /// Changes when partitions come, go or are emptied, and when rows are rewritten.
    layout: String,
}

impl Described {
    pub(super) fn of(relation: &Relation, entry: &str) -> Self {
        Self {
            oid: relation.oid,
            entry: entry.to_owned(),
            columns: logged(relation).map(written).collect(),
            layout: relation.layout.clone(),
        }
    }

    /// With the columns that the server computes.
    pub(in super::super) fn whole(relation: &Relation) -> Self {
        let columns = relation.columns.iter().map(written).collect();
        Self { columns, ..Self::of(relation, "") }
    }

    /// Whether it had the same columns.
    pub(super) fn same_columns(&self, other: &Self) -> bool {
        self.oid == other.oid && self.columns == other.columns
    }

    /// What happened since that is not in the log.
    pub(in super::super) fn broken<'a>(
        &self,
        now: &Self,
        relation: &Relation,
        wanted: impl Iterator<Item = &'a discover::Column>,
    ) -> Option<Broken> {
        let because = |why: &str| Some(Broken(why.to_owned()));
        if self.oid != now.oid {
            return because("the table was dropped and made anew");
        }
        if self.entry != now.entry {
            return because("the table was taken out of its publication and put back");
        }
        if relation.kind == TableKind::PartitionedTable && self.layout != now.layout {
            return because("partitions were attached, detached, emptied or rewritten");
        }
        for column in wanted {
            match self.columns.iter().find(|before| number(before) == Some(column.number)) {
                Some(before) if kind_of(before) != kind_of(&written(column)) => {
                    return because(&format!("the type of `{}` was changed", column.name));
                }
                None if column.added_default.is_some() || self.layout != now.layout => {
                    return because(&format!("`{}` was added with values", column.name));
                }
                _ => {}
            }
        }
        None
    }
}

/// The columns that the log has: what the server computes is not in it.
fn logged(relation: &Relation) -> impl Iterator<Item = &discover::Column> {
    relation.columns.iter().filter(|column| !column.generated)
}

fn written(column: &discover::Column) -> String {
    format!("{}:{}:{}:{}", column.number, column.of.oid, column.of.modifier, column.name)
}

fn number(written: &str) -> Option<i16> {
    written.split(':').next()?.parse().ok()
}

/// Type and modifier.
fn kind_of(written: &str) -> Option<(&str, &str)> {
    let mut parts = written.splitn(4, ':').skip(1);
    Some((parts.next()?, parts.next()?))
}

/// A column that is read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its place in the relation.
    pub(super) place: usize,
    form: Form,
    /// The digits of a decimal, by which two keys are the same.
    decimal: Option<(u8, u8)>,
}

/// In which form a value is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Binary,
    Text,
    /// As text, which a cast writes in another way than the type itself does.
    Bool,
    Padded,
    Network,
}

/// The columns of a request, in its order, and how the log has them.
pub(super) fn wanted(relation: &Relation, request: &ReadRequest) -> Result<Vec<Wanted>> {
    let all = || relation.columns.iter().map(|column| column.name.as_str()).collect();
    let names: Vec<&str> =
        request.columns.as_ref().map_or_else(all, |names| names.iter().map(String::as_str).collect());
    names.into_iter().map(|name| column(relation, request, name)).collect()
}

fn column(relation: &Relation, request: &ReadRequest, name: &str) -> Result<Wanted> {
    let names = relation.columns.iter().map(|column| column.name.as_str());
    let place = relation
        .columns
        .iter()
        .position(|column| column.name == name)
        .ok_or_else(|| missing_column(&relation.id, names, name))?;
    let column = &relation.columns[place];
    let refused = |why: &str| {
        Err(Error::new(ErrorKind::Config, format!("`change: log` cannot read this column: {why}"))
            .with("table", &relation.id)
            .with("column", name)
            .hint("list the other columns in `columns`, or use another `change`"))
    };
    if column.generated {
        return refused("the server computes it, and the log does not have it");
    }
    let (conversion, _) = relation.travels(column, &request.values)?;
    let base = relation.types.base_name(column.of);
    let form = match conversion.cast.as_deref() {
        None => Form::Binary,
        Some("text") => match base {
            "bool" => Form::Bool,
            "bpchar" => Form::Padded,
            "inet" => Form::Network,
            // The type drops the encoding that a document declares.
            "xml" => return refused("the log has not the document as it was written"),
            _ => Form::Text,
        },
        Some("numeric") if base == "numeric" => Form::Binary,
        Some(_) => {
            return refused("its type has no binary form that is exact; `types: {column: text}` may do");
        }
    };
    let decimal = match conversion.codec {
        Codec::Decimal { precision, scale } => Some((precision, scale)),
        _ => None,
    };
    Ok(Wanted { place, form, decimal })
}

/// Whether some columns are needed as text.
pub(super) fn as_text(wanted: &[Wanted]) -> bool {
    wanted.iter().any(|wanted| wanted.form != Form::Binary)
}

/// Where the wanted columns are in the tuples of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// `None`: the column was not there yet.
    places: Vec<Option<usize>>,
    columns: usize,
}

impl Mapping {
    /// Finds the columns of a relation in what a message says of it.
    pub(super) fn of(
        message: &pgoutput::Relation,
        before: &Described,
        relation: &Relation,
        wanted: &[Wanted],
        key: &[usize],
    ) -> Result<Self, Broken> {
        let now: Vec<String> = logged(relation).map(written).collect();
        let said = message.columns.iter().map(|c| format!("{}:{}:{}", c.oid, c.modifier, c.name));
        let said: Vec<String> = said.collect();
        let same = |columns: &[String]| {
            columns.len() == said.len()
                && columns.iter().zip(&said).all(|(column, said)| {
                    column.split_once(':').is_some_and(|(_, described)| described == said)
                })
        };
        let columns = match (same(&now), same(&before.columns)) {
            // By their names they are the same, and by their numbers they are not.
            (true, true) if now != before.columns => {
                return Err(Broken("a column was dropped, and another of its name was added".to_owned()));
            }
            (true, _) => &now,
            (_, true) => &before.columns,
            _ => return Err(Broken("its columns were changed more than once".to_owned())),
        };
        let place: HashMap<i16, usize> =
            columns.iter().enumerate().filter_map(|(i, column)| Some((number(column)?, i))).collect();
        let places: Vec<Option<usize>> =
            wanted.iter().map(|wanted| place.get(&relation.columns[wanted.place].number).copied()).collect();
        let known = |key: &usize| {
            places[*key].is_some_and(|place| message.identity == b'f' || message.columns[place].in_identity)
        };
        if !key.iter().all(known) {
            return Err(Broken("its replica identity did not have the whole key".to_owned()));
        }
        Ok(Self { places, columns: message.columns.len() })
    }

    /// Writes a row as a binary COPY has it. What `new` does not have comes from `old`, where that is whole.
    pub(super) fn row(
        &self,
        wanted: &[Wanted],
        new: Both<'_>,
        old: Option<Both<'_>>,
        row: &mut Vec<u8>,
    ) -> Result<bool> {
        let new = self.values(wanted, new)?;
        let old = old.map(|old| self.values(wanted, old)).transpose()?;
        row.clear();
        row.extend_from_slice(&(wanted.len() as i16).to_be_bytes());
        let mut whole = true;
        for (i, wanted) in wanted.iter().enumerate() {
            let value = match (new[i], &old) {
                (Value::Unchanged, Some(old)) => old[i],
                (value, _) => value,
            };
            whole &= value != Value::Unchanged;
            wanted.push(value, row)?;
        }
        Ok(whole)
    }

    /// Writes the key of a row, and a row with nothing but the key.
    pub(super) fn key(
        &self,
        wanted: &[Wanted],
        key: &[usize],
        tuple: Both<'_>,
        into: &mut Vec<u8>,
        row: Option<&mut Vec<u8>>,
    ) -> Result<()> {
        let values = self.values(wanted, tuple)?;
        into.clear();
        for place in key {
            wanted[*place].push_key(values[*place], into)?;
        }
        let Some(row) = row else { return Ok(()) };
        row.clear();
        row.extend_from_slice(&(wanted.len() as i16).to_be_bytes());
        for (i, wanted) in wanted.iter().enumerate() {
            wanted.push(if key.contains(&i) { values[i] } else { Value::Null }, row)?;
        }
        Ok(())
    }

    fn values<'a>(&self, wanted: &[Wanted], both: Both<'a>) -> Result<Vec<Value<'a>>> {
        let binary: Vec<Value<'a>> = both.binary.values().collect();
        let text: Vec<Value<'a>> = both.text.map(|tuple| tuple.values().collect()).unwrap_or_default();
        if binary.len() != self.columns || (both.text.is_some() && text.len() != self.columns) {
            return Err(corrupt("a row in the log has another number of values than its table has columns"));
        }
        let value = |(wanted, place): (&Wanted, &Option<usize>)| match place {
            None => Value::Null,
            Some(place) if wanted.form == Form::Binary => binary[*place],
            Some(place) => text[*place],
        };
        Ok(wanted.iter().zip(&self.places).map(value).collect())
    }
}

/// A row in both forms; as text only where that is asked for.
#[derive(Clone, Copy)]
pub(super) struct Both<'a> {
    pub(super) binary: Tuple<'a>,
    pub(super) text: Option<Tuple<'a>>,
}

impl Wanted {
    fn push(&self, value: Value<'_>, row: &mut Vec<u8>) -> Result<()> {
        let bytes = match value {
            Value::Null | Value::Unchanged => {
                let len = if value == Value::Null { NULL } else { UNCHANGED };
                row.extend_from_slice(&len.to_be_bytes());
                return Ok(());
            }
            Value::Binary(bytes) if self.form == Form::Binary => bytes,
            Value::Text(text) if self.form != Form::Binary => text,
            _ => return Err(corrupt("a value in the log is not in the form that was asked for")),
        };
        let (bytes, more): (&[u8], &[u8]) = match self.form {
            Form::Binary | Form::Text => (bytes, b""),
            Form::Bool if bytes == b"t" => (b"true", b""),
            Form::Bool => (b"false", b""),
            Form::Padded => (unpadded(bytes), b""),
            Form::Network if bytes.contains(&b'/') => (bytes, b""),
            Form::Network if bytes.contains(&b':') => (bytes, b"/128"),
            Form::Network => (bytes, b"/32"),
        };
        row.extend_from_slice(&((bytes.len() + more.len()) as i32).to_be_bytes());
        row.extend_from_slice(bytes);
        row.extend_from_slice(more);
        Ok(())
    }

    /// As [`push`](Self::push), with numbers that are equal written alike.
    fn push_key(&self, value: Value<'_>, key: &mut Vec<u8>) -> Result<()> {
        if let (Some((precision, scale)), Value::Binary(bytes)) = (self.decimal, value)
            && let Some(numeric::Number::Fits(number)) = numeric::decode(bytes, precision, scale)
        {
            key.extend_from_slice(&16i32.to_be_bytes());
            key.extend_from_slice(&number.to_be_bytes());
            return Ok(());
        }
        self.push(value, key)
    }
}

/// Without the spaces that a `char(n)` is filled up with.
fn unpadded(bytes: &[u8]) -> &[u8] {
    let len = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &bytes[..len]
}

fn corrupt(message: &str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

#[cfg(test)]
pub(super) mod tests;
