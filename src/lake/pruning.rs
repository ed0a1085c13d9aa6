//! Leaves out manifests and files that have no row which a filter lets through.
//!
//! ```text
//! manifest list ─▶ manifests ─(partition summaries)─▶ entries ─(partition, bounds, counts)─▶ files
//! ```
//!
//! DataFusion judges the filter; this says what is known of a column in each manifest or file. What a
//! partition says and what the bounds of the values say narrow each other. The answer "no" is certain;
//! row groups and pages are then left out by DataFusion, by what the files themselves say.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, Int32Type, Schema, SchemaRef};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use iceberg::spec::{
    DataFile, Datum, Literal, ManifestFile, PrimitiveLiteral, TableMetadata, Transform, Type,
};
use iceberg::transform::create_transform_function;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::file_statistics::scalar;
use super::manifest::LiveFile;
use super::partition_values::{fields_of, range, source_type};
use crate::error::Result;

/// A filter, and what it is a filter of.
pub(super) struct Pruning<'a> {
    predicate: PruningPredicate,
    metadata: &'a TableMetadata,
    columns: &'a Schema,
}

impl<'a> Pruning<'a> {
    pub(super) fn new(
        filter: Arc<dyn PhysicalExpr>,
        metadata: &'a TableMetadata,
        columns: &'a SchemaRef,
    ) -> Result<Self> {
        Ok(Self { predicate: PruningPredicate::try_new(filter, columns.clone())?, metadata, columns })
    }

    /// Those that may have rows which pass.
    pub(super) fn manifests<'m>(&self, manifests: &'m [ManifestFile]) -> Result<Vec<&'m ManifestFile>> {
        let known = Known { of: self, containers: manifests };
        let keep = self.predicate.prune(&known)?;
        Ok(manifests.iter().zip(keep).filter(|(_, keep)| *keep).map(|(manifest, _)| manifest).collect())
    }

    /// Those that may have rows which pass.
    pub(super) fn files(&self, files: Vec<LiveFile>) -> Result<Vec<LiveFile>> {
        let keep = self.predicate.prune(&Known { of: self, containers: &files })?;
        Ok(files.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| file).collect())
    }

    fn column(&self, column: &Column) -> Option<(i32, &DataType)> {
        let field = self.columns.field_with_name(&column.name).ok()?;
        Some((field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()?, field.data_type()))
    }
}

/// Least and greatest value, where known.
type Range = (Option<ScalarValue>, Option<ScalarValue>);

/// Something with rows: a manifest or a file.
trait Container {
    /// What is known of a column's values.
    fn range(&self, metadata: &TableMetadata, column: i32, data_type: &DataType) -> Range;
    /// How many of its values are NULL.
    fn nulls(&self, metadata: &TableMetadata, column: i32) -> Option<u64>;
    fn rows(&self) -> Option<u64>;
    /// The numbers of buckets and the bucket that all values are in (`None`: all are NULL).
    fn bucket(&self, metadata: &TableMetadata, column: i32) -> Option<(u32, Option<i32>)>;
}

struct Known<'a, C> {
    of: &'a Pruning<'a>,
    containers: &'a [C],
}

impl<C: Container> Known<'_, C> {
    /// One value for each; NULL where unknown.
    fn ends(&self, column: &Column, end: fn(Range) -> Option<ScalarValue>) -> Option<ArrayRef> {
        let (id, data_type) = self.of.column(column)?;
        let unknown = ScalarValue::try_from(data_type).ok()?;
        let values = self.containers.iter().map(|container| {
            end(container.range(self.of.metadata, id, data_type)).unwrap_or_else(|| unknown.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

impl<C: Container> PruningStatistics for Known<'_, C> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.ends(column, |(low, _)| low)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.ends(column, |(_, high)| high)
    }

    fn num_containers(&self) -> usize {
        self.containers.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let (id, _) = self.of.column(column)?;
        let counts = self.containers.iter().map(|container| container.nulls(self.of.metadata, id));
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.containers.iter().map(Container::rows).collect::<UInt64Array>()))
    }

    /// Buckets say nothing of ranges, but which of some values can be there.
    fn contained(&self, column: &Column, values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        let (id, data_type) = self.of.column(column)?;
        let in_buckets: Vec<_> =
            self.containers.iter().map(|container| container.bucket(self.of.metadata, id)).collect();
        if in_buckets.iter().all(Option::is_none) {
            return None;
        }
        // Of views, no bucket is known.
        let plain = match data_type {
            DataType::Utf8View => &DataType::Utf8,
            DataType::BinaryView => &DataType::Binary,
            other => other,
        };
        let values = values.iter().map(|value| value.cast_to(plain)).collect::<Result<Vec<_>, _>>().ok()?;
        let values = ScalarValue::iter_to_array(values).ok()?;
        let mut of_values: HashMap<u32, HashSet<i32>> = HashMap::new();
        for (buckets, _) in in_buckets.iter().flatten() {
            if !of_values.contains_key(buckets) {
                let hash = create_transform_function(&Transform::Bucket(*buckets)).ok()?;
                let hashes = hash.transform(values.clone()).ok()?;
                let hashes = hashes.as_primitive_opt::<Int32Type>()?;
                of_values.insert(*buckets, hashes.iter().flatten().collect());
            }
        }
        let none_of_them = |(buckets, bucket): (u32, Option<i32>)| {
            let there = bucket.is_some_and(|bucket| of_values[&buckets].contains(&bucket));
            (!there).then_some(false)
        };
        Some(in_buckets.into_iter().map(|bucket| bucket.and_then(none_of_them)).collect())
    }
}

impl Container for LiveFile {
    fn range(&self, metadata: &TableMetadata, column: i32, data_type: &DataType) -> Range {
        let file = &self.file;
        // Bounds leave NaN out, but DataFusion orders it above all numbers.
        if data_type.is_floating() && file.nan_value_counts().get(&column) != Some(&0) {
            return (None, None);
        }
        let bound = |bounds: fn(&DataFile) -> &HashMap<i32, Datum>| {
            scalar(bounds(file).get(&column)?)?.cast_to(data_type).ok()
        };
        let mut known = (bound(DataFile::lower_bounds), bound(DataFile::upper_bounds));
        if data_type.is_floating() {
            return known;
        }
        let Some(spec) = metadata.partition_spec_by_id(self.spec_id) else { return known };
        for (place, field) in fields_of(spec, column) {
            let value = file.partition().fields().get(place).and_then(Option::as_ref);
            let Some((Literal::Primitive(value), kind)) = value.zip(source_type(metadata, field)) else {
                continue;
            };
            known = narrower(known, range(field.transform, value, kind, data_type));
        }
        known
    }

    fn nulls(&self, metadata: &TableMetadata, column: i32) -> Option<u64> {
        if let Some(count) = self.file.null_value_counts().get(&column) {
            return Some(*count);
        }
        let spec = metadata.partition_spec_by_id(self.spec_id)?;
        let (place, _) = fields_of(spec, column).find(|(_, field)| tells_null(field.transform))?;
        match self.file.partition().fields().get(place)? {
            Some(_) => Some(0),
            None => Some(self.file.record_count()),
        }
    }

    fn rows(&self) -> Option<u64> {
        Some(self.file.record_count())
    }

    fn bucket(&self, metadata: &TableMetadata, column: i32) -> Option<(u32, Option<i32>)> {
        let spec = metadata.partition_spec_by_id(self.spec_id)?;
        fields_of(spec, column).find_map(|(place, field)| {
            let Transform::Bucket(buckets) = field.transform else { return None };
            match self.file.partition().fields().get(place)? {
                Some(Literal::Primitive(PrimitiveLiteral::Int(bucket))) => Some((buckets, Some(*bucket))),
                None => Some((buckets, None)),
                Some(_) => None,
            }
        })
    }
}

impl Container for ManifestFile {
    fn range(&self, metadata: &TableMetadata, column: i32, data_type: &DataType) -> Range {
        let mut known = (None, None);
        let (Some(spec), Some(summaries)) =
            (metadata.partition_spec_by_id(self.partition_spec_id), &self.partitions)
        else {
            return known;
        };
        if data_type.is_floating() {
            return known;
        }
        for (place, field) in fields_of(spec, column) {
            let (Some(summary), Some(kind)) = (summaries.get(place), source_type(metadata, field)) else {
                continue;
            };
            let end = |bytes: Option<&Vec<u8>>| {
                let kind = field.transform.result_type(&Type::Primitive(kind.clone())).ok()?;
                let bound = Datum::try_from_bytes(bytes?, kind.as_primitive_type()?.clone()).ok()?;
                Some(bound.literal().clone())
            };
            let within = |value: PrimitiveLiteral| range(field.transform, &value, kind, data_type);
            let low = end(summary.lower_bound.as_deref()).and_then(|value| within(value).0);
            let high = end(summary.upper_bound.as_deref()).and_then(|value| within(value).1);
            known = narrower(known, (low, high));
        }
        known
    }

    fn nulls(&self, metadata: &TableMetadata, column: i32) -> Option<u64> {
        let spec = metadata.partition_spec_by_id(self.partition_spec_id)?;
        let (place, _) = fields_of(spec, column).find(|(_, field)| tells_null(field.transform))?;
        (!self.partitions.as_ref()?.get(place)?.contains_null).then_some(0)
    }

    fn rows(&self) -> Option<u64> {
        None
    }

    fn bucket(&self, _: &TableMetadata, _: i32) -> Option<(u32, Option<i32>)> {
        None
    }
}

/// Whether a partition value is NULL exactly where the column is.
fn tells_null(transform: Transform) -> bool {
    !matches!(transform, Transform::Void | Transform::Unknown)
}

fn narrower(a: Range, b: Range) -> Range {
    let pick = |a: Option<ScalarValue>, b: Option<ScalarValue>, greater: bool| match (a, b) {
        (Some(a), Some(b)) => Some(if (a > b) == greater { a } else { b }),
        (a, b) => a.or(b),
    };
    (pick(a.0, b.0, true), pick(a.1, b.1, false))
}
