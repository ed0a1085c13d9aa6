//! Which columns the target table should have.

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::encode::carry;
use super::kind::{Kind, fits};
use crate::connectors::sql::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::table::{ADDED_DEFAULT, SOURCE_TYPE};
use crate::target::TargetTable;

/// The prefix of source types that another SQL Server understands.
const PREFIX: &str = "mssql:";

/// Arrow's canonical extension types are named here.
const EXTENSION: &str = "ARROW:extension:name";

/// Bytes that a clustered index has for its key; 1,700 would do for others.
const LONGEST_KEY: u32 = 900;

/// Texts of keys are equal when their characters are: `a` is not `A`, `ä` is not `a`.
pub(super) const KEY_COLLATION: &str = "Latin1_General_100_BIN2";

/// The columns for the fields of a stream: of the source's very type where it was a SQL Server, else of
/// one that holds all values of the Arrow type.
pub(super) fn wanted(table: &TargetTable) -> Result<Vec<Wanted>> {
    let limit = longest_key_part(table)?;
    table
        .schema
        .fields()
        .iter()
        .map(|field| {
            let key = table.key.contains(field.name());
            Ok(Wanted {
                name: field.name().clone(),
                data_type: type_of(field, key.then_some(limit))?,
                not_null: !field.is_nullable() || key,
                added_default: field.metadata().get(ADDED_DEFAULT).cloned(),
            })
        })
        .collect()
}

/// How a column of a table that we make is declared: keys compare bit by bit.
pub(super) fn declaration(wanted: &Wanted, key: &[String]) -> String {
    let is_text = Kind::parse(&wanted.data_type).is_some_and(Kind::is_text);
    if is_text && key.contains(&wanted.name) {
        format!("{} COLLATE {KEY_COLLATION}", wanted.data_type)
    } else {
        wanted.data_type.clone()
    }
}

/// The bytes that each text and binary column of the key may have.
fn longest_key_part(table: &TargetTable) -> Result<u32> {
    // The moment from which a version is valid is part of the key.
    let (mut fixed, mut open) = (if table.versions { 8 } else { 0 }, 0);
    for field in table.schema.fields().iter().filter(|field| table.key.contains(field.name())) {
        match Kind::parse(&type_of(field, Some(2))?).and_then(Kind::key_bytes) {
            Some(bytes) => fixed += bytes,
            None => open += 1,
        }
    }
    let left = LONGEST_KEY.saturating_sub(fixed);
    // An even number: two bytes are a unit.
    Ok((left / u32::max(open, 1)) & !1)
}

/// The column's type; `key` is the number of bytes that it may have as a part of the key.
fn type_of(field: &Field, key: Option<u32>) -> Result<String> {
    let default = default_type(field, key)?;
    let exact = source_type(field).filter(|name| {
        let carried = carry(field.data_type(), name).is_some();
        // The lake's type may have grown since, or was given more digits by the user.
        let too_small = match (Kind::parse(name), Kind::parse(&default)) {
            (Some(Kind::Decimal(..)), Some(Kind::Decimal(..))) => !fits(&default, name),
            _ => false,
        };
        let bytes = Kind::parse(name).and_then(Kind::most_bytes);
        let too_long = key.is_some_and(|limit| bytes.is_none_or(|bytes| bytes > limit));
        carried && !too_small && !too_long
    });
    Ok(exact.map_or(default, str::to_owned))
}

/// The type's name in the source, if that was a SQL Server. A row version is the server's own to give.
fn source_type(field: &Field) -> Option<&str> {
    match field.metadata().get(SOURCE_TYPE)?.strip_prefix(PREFIX)? {
        "timestamp" | "rowversion" => Some("binary(8)"),
        name => Some(name),
    }
}

fn default_type(field: &Field, key: Option<u32>) -> Result<String> {
    of_arrow(field.data_type(), is_uuid(field), key).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("SQL Server has no type for the lake's {}", field.data_type()),
        )
        .with("column", field.name())
    })
}

fn is_uuid(field: &Field) -> bool {
    field.metadata().get(EXTENSION).is_some_and(|name| name == "arrow.uuid")
        || field
            .metadata()
            .get(SOURCE_TYPE)
            .is_some_and(|name| name.ends_with(":uuid") || name.ends_with(":uniqueidentifier"))
}

fn of_arrow(arrow: &DataType, uuid: bool, key: Option<u32>) -> Option<String> {
    use DataType as D;
    let scale = |unit: &TimeUnit| match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 7,
    };
    Some(match arrow {
        D::Boolean => "bit".into(),
        D::Int8 | D::Int16 => "smallint".into(),
        D::Int32 | D::UInt8 | D::UInt16 => "int".into(),
        D::Int64 | D::UInt32 => "bigint".into(),
        D::UInt64 => "decimal(20,0)".into(),
        D::Float16 | D::Float32 => "real".into(),
        D::Float64 => "float".into(),
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) | D::Decimal128(precision, scale) => {
            u8::try_from(*scale).ok().filter(|scale| scale <= precision)?;
            format!("decimal({precision},{scale})")
        }
        D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Null => match key {
            Some(bytes) => format!("nvarchar({})", bytes / 2),
            None => "nvarchar(max)".into(),
        },
        D::FixedSizeBinary(16) if uuid => "uniqueidentifier".into(),
        D::FixedSizeBinary(length) if (1..=8_000).contains(length) => format!("binary({length})"),
        D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => match key {
            Some(bytes) => format!("varbinary({bytes})"),
            None => "varbinary(max)".into(),
        },
        D::Date32 => "date".into(),
        D::Time32(unit) | D::Time64(unit) => format!("time({})", scale(unit)),
        D::Timestamp(unit, None) => format!("datetime2({})", scale(unit)),
        D::Timestamp(unit, Some(_)) => format!("datetimeoffset({})", scale(unit)),
        D::Dictionary(_, values) => return of_arrow(values, uuid, key),
        D::RunEndEncoded(_, values) => return of_arrow(values.data_type(), uuid, key),
        // JSON.
        D::List(_) | D::LargeList(_) | D::FixedSizeList(..) | D::Struct(_) | D::Map(..) if key.is_none() => {
            "nvarchar(max)".into()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow::datatypes::Schema;
    use expect_test::expect;

    use super::*;
    use crate::table::TableId;
    use crate::target::Deletes;

    fn types(fields: Vec<Field>, key: &[&str]) -> String {
        let table = TargetTable {
            versions: false,
            id: TableId::bare("t"),
            schema: Arc::new(Schema::new(fields)),
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            deletes: Deletes::Hard,
        };
        match wanted(&table) {
            Ok(columns) => {
                let line = |column: &Wanted| {
                    let not_null = if column.not_null { " NOT NULL" } else { "" };
                    format!("{} {}{not_null}", column.name, declaration(column, &table.key))
                };
                columns.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Err(error) => format!("{error:?}"),
        }
    }

    fn from(source: &str, arrow: DataType) -> Field {
        let metadata = HashMap::from([(SOURCE_TYPE.to_owned(), source.to_owned())]);
        Field::new("c", arrow, true).with_metadata(metadata)
    }

    #[test]
    fn every_arrow_type_has_a_column() {
        let list = DataType::List(Arc::new(Field::new("element", DataType::Int32, true)));
        let all = [
            DataType::Boolean,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::UInt64,
            DataType::Float64,
            DataType::Decimal128(38, 6),
            DataType::Utf8,
            DataType::Binary,
            DataType::FixedSizeBinary(8),
            DataType::Date32,
            DataType::Time64(TimeUnit::Microsecond),
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            list,
        ];
        let names = "abcdefghijklmnopqrstuvwxyz".chars();
        let fields = names.zip(all).map(|(name, of)| Field::new(name.to_string(), of, true)).collect();
        expect![[r#"
            a bit
            b smallint
            c int
            d bigint
            e decimal(20,0)
            f float
            g decimal(38,6)
            h nvarchar(max)
            i varbinary(max)
            j binary(8)
            k date
            l time(6)
            m datetime2(6)
            n datetimeoffset(7)
            o nvarchar(max)"#]]
        .assert_eq(&types(fields, &[]));
    }

    #[test]
    fn a_key_stays_within_the_bytes_of_an_index() {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        expect!["a nvarchar(450) COLLATE Latin1_General_100_BIN2 NOT NULL"]
            .assert_eq(&types(vec![text("a")], &["a"]));
        expect![[r#"
            n bigint NOT NULL
            a nvarchar(223) COLLATE Latin1_General_100_BIN2 NOT NULL
            b nvarchar(223) COLLATE Latin1_General_100_BIN2 NOT NULL
            c nvarchar(max)"#]]
        .assert_eq(&types(
            vec![Field::new("n", DataType::Int64, false), text("a"), text("b"), text("c")],
            &["n", "a", "b"],
        ));
    }

    #[test]
    fn the_sources_own_types_come_back() {
        for (source, arrow, expected) in [
            ("mssql:money", DataType::Decimal128(19, 4), "money"),
            ("mssql:datetime", DataType::Timestamp(TimeUnit::Microsecond, None), "datetime"),
            ("mssql:varchar(20)", DataType::Utf8, "varchar(20)"),
            ("mssql:xml", DataType::Utf8, "xml"),
            ("mssql:geography", DataType::Binary, "varbinary(max)"),
            ("mssql:decimal(10,2)", DataType::Decimal128(12, 2), "decimal(12,2)"),
            ("postgres:numeric(10,2)", DataType::Decimal128(10, 2), "decimal(10,2)"),
            ("postgres:uuid", DataType::FixedSizeBinary(16), "uniqueidentifier"),
        ] {
            assert_eq!(types(vec![from(source, arrow)], &[]), format!("c {expected}"), "{source}");
        }
    }
}
