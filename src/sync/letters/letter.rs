//! One letter, and the table that letters are in.

use std::hash::Hasher;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::json;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher128};

use super::deliver::Note;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{TableMode, TableSpec};
use crate::table::TableId;

/// What the table of letters is called after the stream's lake table.
const SUFFIX: &str = "__dead_letters";

/// The half of a pass in which a row was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leg {
    /// Source to lake.
    Extract,
    /// Lake to target.
    Load,
}

impl Leg {
    /// As the table says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Extract => "extract",
            Self::Load => "load",
        }
    }
}

/// The table of letters of a lake table.
pub fn letters_of(table: &TableId) -> TableId {
    TableId { schema: table.schema.clone(), name: format!("{}{SUFFIX}", table.name) }
}

/// A row that could not be carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Letter {
    /// The same for the same row: see [`Identity`](super::collect::Identity).
    pub(super) letter: String,
    /// The key's columns as JSON, in the lake's names.
    pub(super) key: Option<String>,
    /// The row as JSON.
    pub(super) payload: String,
    /// Why. Names and types, no values.
    pub(super) reason: String,
}

/// What a letter says, in short: two letters with one mark say the same.
pub(super) type Mark = u64;

pub(super) fn mark(payload: &str, reason: &str) -> Mark {
    let mut hasher = SipHasher13::new();
    hasher.write(payload.as_bytes());
    hasher.write_u8(0xff); // in no UTF-8
    hasher.write(reason.as_bytes());
    hasher.finish()
}

/// The name of a letter: the same for the same parts, on every machine.
pub(super) fn name(parts: &[&str]) -> String {
    let mut hasher = SipHasher128::new();
    for part in parts {
        hasher.write(part.as_bytes());
        hasher.write_u8(0xff);
    }
    format!("{:032x}", hasher.finish128().as_u128())
}

/// Each row as one JSON object. NULLs are written out; decimals keep all their digits.
pub(super) fn rows_as_json(rows: &RecordBatch) -> Result<Vec<String>> {
    let mut text = Vec::new();
    let mut writer = json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, json::writer::LineDelimited>(&mut text);
    writer.write(rows).and_then(|()| writer.finish()).map_err(|source| {
        Error::new(ErrorKind::Unsupported, "a rejected row has a column that cannot be written as JSON")
            .hint("set `columns` to leave it out, or carry it as text by `values: { types: … }`")
            .because(source)
    })?;
    drop(writer);
    let text = String::from_utf8(text)
        .map_err(|source| Error::new(ErrorKind::Internal, "JSON is not UTF-8").because(source))?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.len() != rows.num_rows() {
        return Err(Error::new(ErrorKind::Internal, "rejected rows were not written one a line"));
    }
    Ok(lines)
}

/// The table that letters are in.
pub(super) fn spec(id: TableId) -> TableSpec {
    TableSpec {
        id,
        schema: schema(),
        mode: TableMode::Merge,
        key: vec!["letter".to_owned()],
        partition_by: Vec::new(),
        format_version: None,
        sort_by: Vec::new(),
    }
}

fn schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let at = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        text("letter", false),
        text("leg", true),
        text("key", true),
        text("reason", true),
        text("payload", true),
        text("run", true),
        text("window_from", true),
        text("window_to", true),
        Field::new("rejected_at", at, true),
    ]))
}

/// Letters as rows of their table.
pub(super) fn batch(letters: &[Letter], note: &Note) -> Result<RecordBatch> {
    let text = |of: &dyn Fn(&Letter) -> Option<String>| -> ArrayRef {
        Arc::new(letters.iter().map(of).collect::<StringArray>())
    };
    let run = note.run.to_string();
    let at = TimestampMicrosecondArray::from_value(note.at.timestamp_micros(), letters.len());
    let columns = vec![
        text(&|letter| Some(letter.letter.clone())),
        text(&|_| Some(note.leg.name().to_owned())),
        text(&|letter| letter.key.clone()),
        text(&|letter| Some(letter.reason.clone())),
        text(&|letter| Some(letter.payload.clone())),
        text(&|_| Some(run.clone())),
        text(&|_| note.from.clone()),
        text(&|_| Some(note.to.clone())),
        Arc::new(at.with_timezone("UTC")),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

/// The names of letters that go.
pub(super) fn names(letters: &[String]) -> Result<RecordBatch> {
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(letters));
    Ok(RecordBatch::try_from_iter([("letter", column)])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Decimal128Array, Int64Array};

    #[test]
    fn a_row_is_written_to_the_last_digit() {
        let price = Decimal128Array::from(vec![Some(10_i128.pow(37) + 1), None]);
        let rows = RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from(vec![i64::MAX, 2])) as ArrayRef, false),
            ("price", Arc::new(price.with_precision_and_scale(38, 2).unwrap()), true),
            ("text", Arc::new(StringArray::from(vec![Some("a\n\"b"), None])), true),
        ])
        .unwrap();
        assert_eq!(
            rows_as_json(&rows).unwrap(),
            [
                r#"{"id":9223372036854775807,"price":100000000000000000000000000000000000.01,"text":"a\n\"b"}"#,
                r#"{"id":2,"price":null,"text":null}"#
            ]
        );
    }

    #[test]
    fn names_tell_where_parts_end() {
        assert_eq!(name(&["ab", "c"]), name(&["ab", "c"]));
        assert_ne!(name(&["ab", "c"]), name(&["a", "bc"]));
        assert_ne!(mark("ab", "c"), mark("a", "bc"));
    }
}
