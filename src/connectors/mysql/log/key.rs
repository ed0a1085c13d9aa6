//! The key that a stream goes by: where it is in the log's rows, and how a row is asked for by it.
//!
//! A key is held as its values, in bytes that sort as numbers do: rows that lie together are asked for
//! together.

use mysql_async::{Row, Value};

use super::super::discover::{Column, Relation};
use super::super::types::conversion;
use super::cells::{Charset, KeyType, alike};
use super::event::corrupt;
use super::rows::{Cell, Typed};
use crate::clients::mysql::literal;
use crate::connectors::sql::MYSQL;
use crate::error::{Error, ErrorKind, Result};
use crate::source::ReadRequest;

/// The columns of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Key {
    columns: Vec<KeyColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyColumn {
    /// Quoted.
    name: String,
    of: KeyType,
    /// Its place in the table.
    in_table: usize,
    /// Its place among the columns that are read.
    in_rows: usize,
}

impl Key {
    /// The key of a request, if changes can be read by it.
    pub(in super::super) fn of(relation: &Relation, request: &ReadRequest) -> Result<Self> {
        let columns = request.key.iter().map(|name| column(relation, request, name));
        Ok(Self { columns: columns.collect::<Result<_>>()? })
    }

    /// Whether columns of the log can be the table's own, as far as the key goes.
    pub(super) fn fits(&self, columns: &[Typed]) -> bool {
        self.columns.iter().all(|key| columns.get(key.in_table).is_some_and(|of| key.of.is(*of)))
    }

    /// The key in an image of a row. What `cells` lacks did not change, and is taken from the image before
    /// it. `None`: neither has it.
    pub(super) fn read(
        &self,
        columns: &[Typed],
        cells: &[Cell<'_>],
        before: Option<&[Cell<'_>]>,
        into: &mut Vec<u8>,
    ) -> Result<Option<()>> {
        into.clear();
        for key in &self.columns {
            let cell = match (cells.get(key.in_table), before) {
                (Some(Cell::Missing), Some(before)) => before.get(key.in_table),
                (cell, _) => cell,
            };
            let Some(Cell::Bytes(bytes)) = cell else { return Ok(None) };
            let of = columns.get(key.in_table).ok_or_else(corrupt)?;
            push(&key.of.value(*of, bytes).ok_or_else(corrupt)?, into)?;
        }
        Ok(Some(()))
    }

    /// The key of a row that was read.
    pub(super) fn of_row(&self, row: &Row, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        for key in &self.columns {
            let value = row.as_ref(key.in_rows).ok_or_else(other_type)?;
            push(&alike(value.clone()), into)?;
        }
        Ok(())
    }

    /// A key whose values stand side by side in a row, from a place on, as a column of the table has them;
    /// `false`: there is none.
    pub(in super::super) fn side_by_side(&self, row: &Row, from: usize, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        for at in 0..self.columns.len() {
            match row.as_ref(from + at).ok_or_else(other_type)? {
                Value::NULL => return Ok(false),
                value => push(&alike(value.clone()), into)?,
            }
        }
        Ok(true)
    }

    /// A row with nothing but the key.
    pub(super) fn alone(&self, key: &[u8], width: usize) -> Result<Vec<Value>> {
        let mut row = vec![Value::NULL; width];
        for (column, value) in self.columns.iter().zip(self.values(key)?) {
            *row.get_mut(column.in_rows).ok_or_else(other_type)? = value;
        }
        Ok(row)
    }

    /// Whether the server may find a row by a key that is not the same to the last bit.
    pub(super) fn is_loose(&self) -> bool {
        self.columns.iter().any(|column| matches!(column.of, KeyType::Text(_)))
    }

    /// The condition that a row has one of these keys. One by one where there are several columns: not all
    /// servers find rows of an index by lists of rows.
    pub(super) fn condition(&self, keys: &[&[u8]]) -> Result<String> {
        let literals = keys.iter().map(|key| {
            let values = self.values(key)?.into_iter().zip(&self.columns);
            Ok(values.map(|(value, column)| written(&value, column.of)).collect::<Vec<_>>())
        });
        let literals = literals.collect::<Result<Vec<_>>>()?;
        if let [column] = self.columns.as_slice() {
            return Ok(format!("{} IN ({})", column.name, literals.concat().join(", ")));
        }
        let all = literals.iter().map(|key| {
            let parts =
                self.columns.iter().zip(key).map(|(column, value)| format!("{} = {value}", column.name));
            format!("({})", parts.collect::<Vec<_>>().join(" AND "))
        });
        Ok(all.collect::<Vec<_>>().join(" OR "))
    }

    fn values(&self, key: &[u8]) -> Result<Vec<Value>> {
        let mut rest = key;
        self.columns.iter().map(|_| pop(&mut rest).ok_or_else(other_type)).collect()
    }
}

#[cfg(test)]
impl Key {
    /// The first column, an `int`.
    pub(super) fn first_int() -> Self {
        let of = KeyType::Int { unsigned: false };
        Self { columns: vec![KeyColumn { name: "`id`".to_owned(), of, in_table: 0, in_rows: 0 }] }
    }
}

fn column(relation: &Relation, request: &ReadRequest, name: &str) -> Result<KeyColumn> {
    let there = relation.named(name)?;
    let change = request.change.name();
    let in_table = relation.columns.iter().position(|column| column.name == name);
    let in_rows = match &request.columns {
        None => in_table,
        Some(names) => names.iter().position(|wanted| wanted == name),
    };
    let refused = |why: String, hint: &str| {
        Error::new(ErrorKind::Config, why).with("table", &relation.id).with("column", name).hint(hint)
    };
    let (Some(in_table), Some(in_rows)) = (in_table, in_rows) else {
        return Err(refused("a column of the key is not read".into(), "list it in `columns`"));
    };
    if !there.not_null {
        return Err(refused(
            format!("`change: {change}` goes by the key, and a column of it may be NULL"),
            "declare it NOT NULL, or use `change: full`",
        ));
    }
    if conversion(name, &there.of, &request.values)?.expression.is_some() {
        return Err(refused(
            format!("`change: {change}` reads a key as the type that it has"),
            "take it out of `types`, or use another `change`",
        ));
    }
    let of = key_type(there).ok_or_else(|| {
        refused(
            format!("`change: {change}` does not read keys of type {}", described(there)),
            "name another unique key as `primary_key`, or use another `change`",
        )
    })?;
    Ok(KeyColumn { name: MYSQL.ident(name), of, in_table, in_rows })
}

fn described(column: &Column) -> String {
    let collation = column.of.collation.as_ref().map(|collation| format!(" in {collation}"));
    format!("{}{}", column.of.written(), collation.unwrap_or_default())
}

/// How a column's values lie in the log, where that is known to the last bit.
fn key_type(column: &Column) -> Option<KeyType> {
    let of = &column.of;
    let collation = of.collation.as_deref().unwrap_or_default();
    Some(match of.base.as_str() {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => KeyType::Int { unsigned: of.unsigned },
        "decimal" => KeyType::Decimal { precision: of.precision, scale: of.scale },
        "char" | "varchar" => KeyType::Text(match collation.split('_').next()? {
            "utf8mb4" | "utf8mb3" | "utf8" | "ascii" | "uca1400" => Charset::Utf8,
            "latin1" => Charset::Latin1,
            _ => return None,
        }),
        "binary" => KeyType::Bytes { filled: true },
        "varbinary" => KeyType::Bytes { filled: false },
        "bit" => KeyType::Bits,
        "year" => KeyType::Year,
        "date" => KeyType::Date,
        "time" => KeyType::Time { digits: of.scale },
        "datetime" => KeyType::DateTime { digits: of.scale },
        "timestamp" => KeyType::Timestamp { digits: of.scale },
        _ => return None,
    })
}

/// A value as it stands in a statement, exactly.
fn written(value: &Value, of: KeyType) -> String {
    match (of, value) {
        (KeyType::Text(_), Value::Bytes(text)) => literal(&String::from_utf8_lossy(text)),
        (KeyType::Decimal { .. }, Value::Bytes(digits)) => String::from_utf8_lossy(digits).into_owned(),
        (_, Value::Bytes(bytes)) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            // Bits compare as the number that they are.
            if of == KeyType::Bits { format!("0x{digits} + 0") } else { format!("X'{digits}'") }
        }
        (_, Value::Date(year, month, day, hour, minute, second, micros)) => {
            let day = format!("{year:04}-{month:02}-{day:02}");
            match of {
                KeyType::Date => format!("'{day}'"),
                _ => format!("'{day} {hour:02}:{minute:02}:{second:02}.{micros:06}'"),
            }
        }
        (_, Value::Time(negative, days, hour, minute, second, micros)) => {
            let (sign, hours) = (if *negative { "-" } else { "" }, days * 24 + u32::from(*hour));
            format!("'{sign}{hours:02}:{minute:02}:{second:02}.{micros:06}'")
        }
        (_, other) => other.as_sql(false),
    }
}

const INT: u8 = 1;
const GREAT: u8 = 2;
const BYTES: u8 = 3;
const DATE: u8 = 4;
const TIME: u8 = 5;

fn push(value: &Value, into: &mut Vec<u8>) -> Result<()> {
    match value {
        Value::Int(number) => {
            into.push(INT);
            into.extend((number.cast_unsigned() ^ 1 << 63).to_be_bytes());
        }
        Value::UInt(number) => {
            into.push(GREAT);
            into.extend(number.to_be_bytes());
        }
        Value::Bytes(bytes) => {
            into.push(BYTES);
            into.extend(u32::try_from(bytes.len()).map_err(|_| other_type())?.to_be_bytes());
            into.extend(bytes);
        }
        Value::Date(year, month, day, hour, minute, second, micros) => {
            into.push(DATE);
            into.extend(year.to_be_bytes());
            into.extend([month, day, hour, minute, second]);
            into.extend(micros.to_be_bytes());
        }
        Value::Time(negative, days, hour, minute, second, micros) => {
            into.extend([TIME, u8::from(*negative)]);
            into.extend(days.to_be_bytes());
            into.extend([hour, minute, second]);
            into.extend(micros.to_be_bytes());
        }
        _ => return Err(other_type()),
    }
    Ok(())
}

fn pop(rest: &mut &[u8]) -> Option<Value> {
    let mut take = |count: usize| {
        let (taken, others) = rest.split_at_checked(count)?;
        *rest = others;
        Some(taken)
    };
    Some(match take(1)?[0] {
        INT => Value::Int((u64::from_be_bytes(*take(8)?.first_chunk()?) ^ 1 << 63).cast_signed()),
        GREAT => Value::UInt(u64::from_be_bytes(*take(8)?.first_chunk()?)),
        BYTES => {
            let length = u32::from_be_bytes(*take(4)?.first_chunk()?);
            Value::Bytes(take(length as usize)?.to_vec())
        }
        DATE => {
            let [a, b, month, day, hour, minute, second] = *take(7)?.first_chunk()?;
            let micros = u32::from_be_bytes(*take(4)?.first_chunk()?);
            Value::Date(u16::from_be_bytes([a, b]), month, day, hour, minute, second, micros)
        }
        TIME => {
            let negative = take(1)?[0] == 1;
            let days = u32::from_be_bytes(*take(4)?.first_chunk()?);
            let [hour, minute, second] = *take(3)?.first_chunk()?;
            let micros = u32::from_be_bytes(*take(4)?.first_chunk()?);
            Value::Time(negative, days, hour, minute, second, micros)
        }
        _ => return None,
    })
}

fn other_type() -> Error {
    Error::new(ErrorKind::Transient, "a column of the key has another type than a moment ago")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn key(of: &[KeyType]) -> Key {
        let column = |(at, of): (usize, &KeyType)| KeyColumn {
            name: format!("`{}`", ["a", "b", "c"][at]),
            of: *of,
            in_table: at,
            in_rows: at,
        };
        Key { columns: of.iter().enumerate().map(column).collect() }
    }

    fn held(values: &[Value]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in values {
            push(value, &mut bytes).unwrap();
        }
        bytes
    }

    #[test]
    fn values_come_back_as_they_went() {
        let values = [
            Value::Int(-7),
            Value::UInt(u64::MAX),
            Value::Bytes(vec![0, 255]),
            Value::Date(9999, 12, 31, 23, 59, 59, 999_999),
            Value::Time(true, 34, 22, 59, 59, 1),
        ];
        let bytes = held(&values);
        let rest = &mut bytes.as_slice();
        let back: Vec<_> = std::iter::from_fn(|| pop(rest)).collect();
        assert_eq!(back, values);
        assert!(held(&[Value::Int(-1)]) < held(&[Value::Int(0)]));
        assert!(held(&[Value::Int(i64::MAX)]) < held(&[Value::UInt(1 << 63)]));
        assert!(push(&Value::NULL, &mut Vec::new()).is_err());
    }

    #[test]
    fn rows_are_asked_for_by_exact_literals() {
        let one = |of, value| key(&[of]).condition(&[&held(&[value])]).unwrap();
        let text = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        let all = [
            one(KeyType::Int { unsigned: false }, Value::Int(-5)),
            one(KeyType::Text(Charset::Utf8), text(r"it's \")),
            one(KeyType::Decimal { precision: 5, scale: 2 }, text("-0.50")),
            one(KeyType::Bytes { filled: true }, Value::Bytes(vec![0, 255])),
            one(KeyType::Bits, Value::Bytes(vec![1, 2])),
            one(KeyType::Date, Value::Date(0, 0, 0, 0, 0, 0, 0)),
            one(KeyType::DateTime { digits: 3 }, Value::Date(2020, 1, 2, 3, 4, 5, 6000)),
            one(KeyType::Time { digits: 0 }, Value::Time(true, 34, 22, 59, 59, 0)),
        ];
        expect![[r#"
            `a` IN (-5)
            `a` IN ('it''s \\')
            `a` IN (-0.50)
            `a` IN (X'00ff')
            `a` IN (0x0102 + 0)
            `a` IN ('0000-00-00')
            `a` IN ('2020-01-02 03:04:05.006000')
            `a` IN ('-838:59:59.000000')"#]]
        .assert_eq(&all.join("\n"));
        let two = key(&[KeyType::Int { unsigned: false }, KeyType::Year]);
        let (first, second) =
            (held(&[Value::Int(1), Value::Int(2000)]), held(&[Value::Int(2), Value::Int(0)]));
        expect!["(`a` = 1 AND `b` = 2000) OR (`a` = 2 AND `b` = 0)"]
            .assert_eq(&two.condition(&[&first, &second]).unwrap());
    }
}
