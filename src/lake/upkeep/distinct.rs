//! Counts the different values of each column, for optimizers: Trino's and Spark's, and our own.
//!
//! ```text
//! rows ─▶ a sketch a column ─▶ metadata/….stats (Puffin) ─▶ named in the table's metadata, for a snapshot
//! ```
//!
//! Reads every row, so it is done when somebody asks for it. Later snapshots go by what the nearest one
//! before them knows; the file expires with its snapshot. NULL is no value. Lists, structs and maps are
//! not counted.

use std::collections::HashMap;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, TimestampNanosecondType,
};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::prelude::ident;
use futures::StreamExt;
use iceberg::puffin::{APACHE_DATASKETCHES_THETA_V1, Blob, CompressionCodec, PuffinWriter};
use iceberg::spec::{BlobMetadata, StatisticsFile};
use iceberg::{TableRequirement, TableUpdate};
use uuid::Uuid;

use super::super::LakeTable;
use super::super::field_ids::id;
use super::super::storage::iceberg_error;
use super::super::theta::Theta;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// Property of a blob: the number that its sketch says.
const NDV: &str = "ndv";
const CREATED_BY: &str = concat!("frazil ", env!("CARGO_PKG_VERSION"));
/// Bytes that a Puffin file begins with, before its first blob.
const PUFFIN_MAGIC: u64 = 4;

impl LakeTable {
    /// Counts the different values of each column in the current snapshot, and says of how many columns.
    /// `None` where they have been counted already.
    pub async fn count_distinct(&mut self, budget: Budget) -> Result<Option<usize>> {
        self.try_count(budget).await.map_err(|error| error.with("table", &self.id))
    }

    async fn try_count(&mut self, budget: Budget) -> Result<Option<usize>> {
        let Some(snapshot) = self.current() else { return Ok(None) };
        if self.table.metadata().statistics_for_snapshot(snapshot.0).is_some() {
            return Ok(None);
        }
        let sketches = self.sketches(snapshot, budget).await?;
        let counted = sketches.len();
        let statistics = self.write_statistics(snapshot, sketches).await?;
        let requirements = vec![TableRequirement::UuidMatch { uuid: self.uuid() }];
        let updates = vec![TableUpdate::SetStatistics { statistics: statistics.clone() }];
        match self.catalog.commit(&self.table, requirements, updates).await {
            Ok(moved) => self.table = moved,
            Err(error) => {
                // What may have been swapped in must stay.
                if error.kind() == ErrorKind::Conflict {
                    let _ = self.table.file_io().delete(&statistics.statistics_path).await;
                }
                return Err(error);
            }
        }
        Ok(Some(counted))
    }

    /// A sketch of each column that has plain values, by the field's id.
    async fn sketches(&self, snapshot: SnapshotId, budget: Budget) -> Result<Vec<(i32, Theta)>> {
        let provider = self.provider(Some(snapshot)).await?;
        let schema = provider.schema();
        let columns: Vec<(usize, i32)> = schema
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| is_plain(field.data_type()))
            .filter_map(|(index, field)| Some((index, id(field)?.parse().ok()?)))
            .collect();
        let names: Vec<&str> =
            columns.iter().map(|(index, _)| schema.field(*index).name().as_str()).collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let session = self.session(budget, budget.query_streams(cores))?;
        let columns_of: Vec<Expr> = names.iter().map(|name| ident(*name)).collect();
        let rows = session.read_table(provider.clone())?.select(columns_of)?;
        let none: Vec<(i32, Theta)> = columns.iter().map(|(_, id)| (*id, Theta::new())).collect();
        let parts = rows.execute_stream_partitioned().await?;
        let parts = parts.into_iter().map(|part| tokio::spawn(sketch(part, none.clone())));
        let mut sketches = none.clone();
        for part in futures::future::join_all(parts).await {
            let part = part.map_err(|source| {
                Error::new(ErrorKind::Internal, "counting values ended early").because(source)
            })?;
            for ((_, whole), (_, part)) in sketches.iter_mut().zip(&part?) {
                whole.merge(part);
            }
        }
        Ok(sketches)
    }

    /// One file with a blob for each column, described as the table's metadata wants it.
    async fn write_statistics(
        &self,
        snapshot: SnapshotId,
        sketches: Vec<(i32, Theta)>,
    ) -> Result<StatisticsFile> {
        let metadata = self.table.metadata();
        let sequence = metadata.snapshot_by_id(snapshot.0).map_or(0, |snapshot| snapshot.sequence_number());
        let io = self.table.file_io();
        let path = format!("{}/metadata/{snapshot}-{}.stats", metadata.location(), Uuid::new_v4());
        let output = io.new_output(&path).map_err(iceberg_error)?;
        let by = HashMap::from([("created-by".to_owned(), CREATED_BY.to_owned())]);
        let mut writer = PuffinWriter::new(&output, by, false).await.map_err(iceberg_error)?;
        let mut blob_metadata = Vec::new();
        let mut before_footer = PUFFIN_MAGIC;
        for (field, mut sketch) in sketches {
            let properties = HashMap::from([(NDV.to_owned(), sketch.estimate().to_string())]);
            let data = sketch.compact();
            before_footer += data.len() as u64;
            blob_metadata.push(BlobMetadata {
                r#type: APACHE_DATASKETCHES_THETA_V1.to_owned(),
                snapshot_id: snapshot.0,
                sequence_number: sequence,
                fields: vec![field],
                properties: properties.clone(),
            });
            let blob = Blob::builder()
                .r#type(APACHE_DATASKETCHES_THETA_V1.to_owned())
                .fields(vec![field])
                .snapshot_id(snapshot.0)
                .sequence_number(sequence)
                .data(data)
                .properties(properties)
                .build();
            writer.add(blob, CompressionCodec::None).await.map_err(iceberg_error)?;
        }
        writer.close().await.map_err(iceberg_error)?;
        let written = io.new_input(&path).map_err(iceberg_error)?.metadata().await.map_err(iceberg_error)?;
        Ok(StatisticsFile {
            snapshot_id: snapshot.0,
            statistics_path: path,
            file_size_in_bytes: written.size as i64,
            file_footer_size_in_bytes: (written.size - before_footer) as i64,
            key_metadata: None,
            blob_metadata,
        })
    }

    /// How many different values each column has, by the field's id, as far as somebody counted them at
    /// this snapshot or at the nearest one before it.
    pub(in super::super) fn distinct_counts(&self, snapshot: SnapshotId) -> HashMap<i32, u64> {
        let metadata = self.table.metadata();
        if metadata.statistics_iter().next().is_none() {
            return HashMap::new();
        }
        let known = |it: &iceberg::spec::SnapshotRef| metadata.statistics_for_snapshot(it.snapshot_id());
        let blobs = self.ancestors(snapshot).find_map(known).map(|file| &file.blob_metadata);
        let counts = blobs.into_iter().flatten().filter_map(|blob| match blob.fields[..] {
            [field] if blob.r#type == APACHE_DATASKETCHES_THETA_V1 => {
                Some((field, blob.properties.get(NDV)?.parse().ok()?))
            }
            _ => None,
        });
        counts.collect()
    }
}

/// The values of some rows, added to a sketch of each column.
async fn sketch(
    mut rows: SendableRecordBatchStream,
    mut sketches: Vec<(i32, Theta)>,
) -> Result<Vec<(i32, Theta)>> {
    while let Some(batch) = rows.next().await {
        for (column, (_, sketch)) in batch?.columns().iter().zip(&mut sketches) {
            add(column, sketch)?;
        }
    }
    Ok(sketches)
}

/// Whether values of a type have bytes that Iceberg gives to a single value.
fn is_plain(data_type: &DataType) -> bool {
    use DataType as D;
    let by_microseconds_or_less =
        |unit: &TimeUnit| matches!(unit, TimeUnit::Microsecond | TimeUnit::Nanosecond);
    match data_type {
        D::Boolean | D::Int32 | D::Int64 | D::Float32 | D::Float64 | D::Date32 | D::Decimal128(..) => true,
        D::Time64(unit) => *unit == TimeUnit::Microsecond,
        D::Timestamp(unit, _) => by_microseconds_or_less(unit),
        D::Utf8 | D::Binary | D::FixedSizeBinary(_) => true,
        _ => false,
    }
}

/// The values of a column, each in the bytes of a single value.
fn add(column: &ArrayRef, sketch: &mut Theta) -> Result<()> {
    macro_rules! numbers {
        ($kind:ty) => {
            column.as_primitive::<$kind>().iter().flatten().for_each(|value| sketch.add(&value.to_le_bytes()))
        };
    }
    match column.data_type() {
        DataType::Boolean => {
            column.as_boolean().iter().flatten().for_each(|value| sketch.add(&[u8::from(value)]))
        }
        DataType::Int32 => numbers!(Int32Type),
        DataType::Int64 => numbers!(Int64Type),
        DataType::Float32 => numbers!(Float32Type),
        DataType::Float64 => numbers!(Float64Type),
        DataType::Date32 => numbers!(Date32Type),
        DataType::Time64(TimeUnit::Microsecond) => numbers!(Time64MicrosecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => numbers!(TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => numbers!(TimestampNanosecondType),
        DataType::Decimal128(..) => {
            column.as_primitive::<Decimal128Type>().iter().flatten().for_each(|value| {
                let bytes = value.to_be_bytes();
                sketch.add(&bytes[sign_bytes(value)..]);
            });
        }
        DataType::Utf8 => {
            column.as_string::<i32>().iter().flatten().for_each(|value| sketch.add(value.as_bytes()))
        }
        DataType::Binary => column.as_binary::<i32>().iter().flatten().for_each(|value| sketch.add(value)),
        DataType::FixedSizeBinary(_) => {
            column.as_fixed_size_binary().iter().flatten().for_each(|value| sketch.add(value));
        }
        other => {
            return Err(Error::new(ErrorKind::Internal, format!("values of {other} cannot be counted")));
        }
    }
    Ok(())
}

/// How many leading bytes only repeat the sign.
fn sign_bytes(value: i128) -> usize {
    let same = if value < 0 { value.leading_ones() } else { value.leading_zeros() };
    ((same.max(1) - 1) / 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_have_as_few_bytes_as_their_sign_allows() {
        for (value, expected) in [
            (0, &[0][..]),
            (127, &[127]),
            (128, &[0, 128]),
            (-1, &[255]),
            (-128, &[128]),
            (-129, &[255, 127]),
            (123_456, &[1, 226, 64]),
        ] {
            assert_eq!(&i128::to_be_bytes(value)[sign_bytes(value)..], expected, "{value}");
        }
        assert_eq!((sign_bytes(i128::MAX), sign_bytes(i128::MIN)), (0, 0));
    }
}
