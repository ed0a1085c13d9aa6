//! Which columns the target table should have.

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::encode::carry;
use super::kind::{Kind, fits};
use crate::clients::mysql::Server;
use crate::connectors::sql::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::table::{ADDED_DEFAULT, SOURCE_TYPE};
use crate::target::TargetTable;

/// The prefix of source types that another MySQL or MariaDB understands.
const PREFIX: &str = "mysql:";

/// Arrow's canonical extension types are named here.
const EXTENSION: &str = "ARROW:extension:name";

/// Bytes that an index of InnoDB has for its key.
const LONGEST_KEY: u32 = 3_072;
/// Bytes that a character may take.
const CHARACTER: u32 = 4;

/// Texts of keys are equal when their characters are, blanks at the end included: each server has its own
/// name for that order.
pub(super) fn key_collation(server: &Server) -> &'static str {
    if server.mariadb { "utf8mb4_nopad_bin" } else { "utf8mb4_0900_bin" }
}

/// The columns for the fields of a stream: of the source's very type where it was a MySQL, else of one that
/// holds all values of the Arrow type.
pub(super) fn wanted(table: &TargetTable, server: &Server) -> Result<Vec<Wanted>> {
    let limit = longest_key_part(table, server)?;
    table
        .schema
        .fields()
        .iter()
        .map(|field| {
            let key = table.key.contains(field.name());
            Ok(Wanted {
                name: field.name().clone(),
                data_type: type_of(field, key.then_some(limit), server)?,
                not_null: !field.is_nullable() || key,
                added_default: field
                    .metadata()
                    .get(ADDED_DEFAULT)
                    .and_then(|text| default(field.data_type(), text, server)),
            })
        })
        .collect()
}

/// How a column of a table that we make is declared: keys compare bit by bit.
pub(super) fn declaration(wanted: &Wanted, key: &[String], server: &Server) -> String {
    let is_text = Kind::parse(&wanted.data_type).is_some_and(Kind::is_text);
    if is_text && key.contains(&wanted.name) {
        format!("{} COLLATE {}", wanted.data_type, key_collation(server))
    } else {
        wanted.data_type.clone()
    }
}

/// The bytes that each text and binary column of the key may have.
fn longest_key_part(table: &TargetTable, server: &Server) -> Result<u32> {
    // The moment from which a version is valid is part of the key.
    let (mut fixed, mut open) = (if table.versions { 8 } else { 0 }, 0);
    for field in table.schema.fields().iter().filter(|field| table.key.contains(field.name())) {
        match Kind::parse(&type_of(field, Some(CHARACTER), server)?) {
            Some(Kind::Varchar(_) | Kind::Varbinary(_)) | None => open += 1,
            Some(kind) => fixed += kind.key_bytes().unwrap_or(0),
        }
    }
    Ok(LONGEST_KEY.saturating_sub(fixed) / u32::max(open, 1))
}

/// The column's type; `key` is the number of bytes that it may have as a part of the key.
fn type_of(field: &Field, key: Option<u32>, server: &Server) -> Result<String> {
    let default = of_arrow(field.data_type(), is_uuid(field), key, server).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("MySQL has no type for the lake's {}", field.data_type()))
            .with("column", field.name())
    })?;
    let exact = field.metadata().get(SOURCE_TYPE).and_then(|name| name.strip_prefix(PREFIX)).filter(|name| {
        let carried = carry(field.data_type(), name).is_some();
        let (own, needed) = (Kind::parse(name), Kind::parse(&default));
        // The lake's type may have grown since, or was given more digits by the user.
        let too_small = match (own, needed) {
            (Some(Kind::Decimal(..)), Some(Kind::Decimal(..))) => !fits(&default, name),
            (Some(Kind::Int(width, _)), Some(Kind::Int(wanted, _))) => {
                width <= 4 && wanted > 4 && !name.contains("unsigned")
            }
            _ => false,
        };
        let too_long =
            key.is_some_and(|limit| own.and_then(Kind::key_bytes).is_none_or(|bytes| bytes > limit.max(20)));
        // Only MariaDB has it.
        let unknown = own == Some(Kind::Uuid) && !has_uuid(server);
        carried && !too_small && !too_long && !unknown
    });
    Ok(exact.map_or(default, str::to_owned))
}

fn has_uuid(server: &Server) -> bool {
    server.mariadb && server.version >= (10, 7)
}

fn is_uuid(field: &Field) -> bool {
    field.metadata().get(EXTENSION).is_some_and(|name| name == "arrow.uuid")
        || field
            .metadata()
            .get(SOURCE_TYPE)
            .is_some_and(|name| name.ends_with(":uuid") || name.ends_with(":uniqueidentifier"))
}

fn of_arrow(arrow: &DataType, uuid: bool, key: Option<u32>, server: &Server) -> Option<String> {
    use DataType as D;
    // Finer than a microsecond there is nothing: such values are refused one by one.
    let digits = |unit: &TimeUnit| match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond | TimeUnit::Nanosecond => 6,
    };
    Some(match arrow {
        D::Boolean => "tinyint(1)".into(),
        D::Int8 | D::Int16 => "smallint".into(),
        D::Int32 | D::UInt8 | D::UInt16 => "int".into(),
        D::Int64 | D::UInt32 => "bigint".into(),
        D::UInt64 => "decimal(20,0)".into(),
        D::Float16 | D::Float32 => "float".into(),
        D::Float64 => "double".into(),
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) | D::Decimal128(precision, scale) => {
            let most = if server.mariadb { 38 } else { 30 };
            u8::try_from(*scale).ok().filter(|scale| scale <= precision && *scale <= most)?;
            format!("decimal({precision},{scale})")
        }
        D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Null => match key {
            Some(bytes) => format!("varchar({})", bytes / CHARACTER),
            None => "longtext".into(),
        },
        D::FixedSizeBinary(16) if uuid && has_uuid(server) => "uuid".into(),
        D::FixedSizeBinary(length) if (1..=255).contains(length) => format!("binary({length})"),
        D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => match key {
            Some(bytes) => format!("varbinary({bytes})"),
            None => "longblob".into(),
        },
        D::Date32 => "date".into(),
        D::Time32(unit) | D::Time64(unit) => format!("time({})", digits(unit)),
        // A `timestamp` of the server ends in 2038.
        D::Timestamp(unit, _) => format!("datetime({})", digits(unit)),
        D::Dictionary(_, values) => return of_arrow(values, uuid, key, server),
        D::RunEndEncoded(_, values) => return of_arrow(values.data_type(), uuid, key, server),
        // JSON.
        D::List(_) | D::LargeList(_) | D::FixedSizeList(..) | D::Struct(_) | D::Map(..) if key.is_none() => {
            "longtext".into()
        }
        _ => return None,
    })
}

/// A default as the server reads it; `None` where it has no such literal.
fn default(arrow: &DataType, text: &str, server: &Server) -> Option<String> {
    use DataType as D;
    match arrow {
        D::Boolean => Some(if text == "true" { "1" } else { "0" }.to_owned()),
        D::Int32 | D::Int64 | D::Float32 | D::Float64 | D::Decimal128(..) | D::Date32 | D::Time64(_) => {
            Some(text.to_owned())
        }
        // MySQL takes no default for a `longtext`.
        D::Utf8 => server.mariadb.then(|| text.replace('\\', "\\\\")),
        D::Timestamp(..) => {
            let text = text.strip_suffix("+00:00").or_else(|| text.strip_suffix('Z')).unwrap_or(text);
            Some(text.replace('T', " "))
        }
        _ => None,
    }
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

    fn server(mariadb: bool) -> Server {
        Server { mariadb, version: if mariadb { (10, 11) } else { (8, 0) }, database: None }
    }

    fn types(fields: Vec<Field>, key: &[&str], server: &Server) -> String {
        let table = TargetTable {
            versions: false,
            id: TableId::bare("t"),
            schema: Arc::new(Schema::new(fields)),
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            deletes: Deletes::Hard,
        };
        match wanted(&table, server) {
            Ok(columns) => {
                let line = |column: &Wanted| {
                    let not_null = if column.not_null { " NOT NULL" } else { "" };
                    format!("{} {}{not_null}", column.name, declaration(column, &table.key, server))
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
            DataType::Int32,
            DataType::Int64,
            DataType::UInt64,
            DataType::Float32,
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
            a tinyint(1)
            b int
            c bigint
            d decimal(20,0)
            e float
            f double
            g decimal(38,6)
            h longtext
            i longblob
            j binary(8)
            k date
            l time(6)
            m datetime(6)
            n datetime(6)
            o longtext"#]]
        .assert_eq(&types(fields, &[], &server(true)));
    }

    #[test]
    fn a_key_stays_within_the_bytes_of_an_index() {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        expect!["a varchar(768) COLLATE utf8mb4_nopad_bin NOT NULL"].assert_eq(&types(
            vec![text("a")],
            &["a"],
            &server(true),
        ));
        expect![[r#"
            n bigint NOT NULL
            a varchar(383) COLLATE utf8mb4_0900_bin NOT NULL
            b varchar(383) COLLATE utf8mb4_0900_bin NOT NULL
            c longtext"#]]
        .assert_eq(&types(
            vec![Field::new("n", DataType::Int64, false), text("a"), text("b"), text("c")],
            &["n", "a", "b"],
            &server(false),
        ));
    }

    #[test]
    fn the_sources_own_types_come_back() {
        for (source, arrow, expected) in [
            (
                "mysql:timestamp(6)",
                DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
                "timestamp(6)",
            ),
            ("mysql:varchar(20)", DataType::Utf8, "varchar(20)"),
            ("mysql:enum('a','b')", DataType::Utf8, "enum('a','b')"),
            ("mysql:bigint unsigned", DataType::Decimal128(20, 0), "bigint unsigned"),
            ("mysql:bit(9)", DataType::Int64, "bit(9)"),
            ("mysql:int unsigned", DataType::Int64, "int unsigned"),
            ("mysql:int", DataType::Int64, "bigint"),
            ("mysql:decimal(10,2)", DataType::Decimal128(12, 2), "decimal(12,2)"),
            ("mysql:point", DataType::Binary, "longblob"),
            ("postgres:numeric(10,2)", DataType::Decimal128(10, 2), "decimal(10,2)"),
            ("postgres:uuid", DataType::FixedSizeBinary(16), "uuid"),
        ] {
            assert_eq!(
                types(vec![from(source, arrow)], &[], &server(true)),
                format!("c {expected}"),
                "{source}"
            );
        }
        let uuid = from("mysql:uuid", DataType::FixedSizeBinary(16));
        assert_eq!(types(vec![uuid], &[], &server(false)), "c binary(16)");
    }
}
