//! Whether shop, lake and warehouse hold the same rows.
//!
//! The two databases are read by plain SQLite and the lake by plain SQL, not by the connectors under
//! test. Each row becomes text, each text a number, and the numbers are added: the sum does not
//! depend on the order of rows, and a row that is lost, doubled or changed moves it.

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use rusqlite::Connection as Database;
use rusqlite::types::ValueRef;

use super::shop::failed;
use crate::error::Result;
use crate::query;

/// How many rows there are, and the sum of them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum {
    pub(super) rows: u64,
    pub(super) checksum: u64,
}

impl Sum {
    fn add(&mut self, row: &str) {
        // FNV-1a: small, well spread, and the same everywhere.
        let hash = row.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.rows += 1;
        self.checksum = self.checksum.wrapping_add(hash);
    }
}

/// The rows of a database's table.
pub(super) fn in_database(file: &Path, table: &str) -> Result<Sum> {
    let read = || -> rusqlite::Result<Sum> {
        let database = Database::open(file)?;
        let mut statement = database.prepare(&format!("SELECT * FROM {table}"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut sum = Sum::default();
        let mut text = String::new();
        while let Some(row) = rows.next()? {
            text.clear();
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Null => text.push('∅'),
                    ValueRef::Integer(value) => text.push_str(&value.to_string()),
                    ValueRef::Real(value) => text.push_str(&value.to_string()),
                    ValueRef::Text(value) => text.push_str(&String::from_utf8_lossy(value)),
                    ValueRef::Blob(value) => {
                        value.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")))
                    }
                }
                text.push('\u{1f}');
            }
            sum.add(&text);
        }
        Ok(sum)
    };
    read().map_err(|error| failed(file, error))
}

/// The rows of the lake's table.
pub(super) async fn in_lake(session: &SessionContext, table: &str) -> Result<Sum> {
    let mut batches = query::sql(session, &format!("SELECT * FROM {table}")).await?.execute_stream().await?;
    let mut sum = Sum::default();
    let options = FormatOptions::default().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    let mut text = String::new();
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let columns = batch
            .columns()
            .iter()
            .map(|column| Ok((column, ArrayFormatter::try_new(column, &options)?)))
            .collect::<Result<Vec<_>>>()?;
        for row in 0..batch.num_rows() {
            text.clear();
            for (column, formatter) in &columns {
                match column.data_type() {
                    _ if column.is_null(row) => text.push('∅'),
                    DataType::Boolean => text.push(if column.as_boolean().value(row) { '1' } else { '0' }),
                    // SQLite keeps the number and not its zeros.
                    DataType::Decimal128(..) => {
                        text.push_str(
                            formatter.value(row).to_string().trim_end_matches('0').trim_end_matches('.'),
                        );
                    }
                    DataType::Float64 => {
                        let value = column.as_primitive::<arrow::datatypes::Float64Type>().value(row);
                        text.push_str(&value.to_string());
                    }
                    _ => text.push_str(&formatter.value(row).to_string()),
                }
                text.push('\u{1f}');
            }
            sum.add(&text);
        }
    }
    Ok(sum)
}
