//! Which data files can hold a row with one of the keys, by what manifests say of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;
use iceberg::spec::{Datum, Literal, PrimitiveLiteral, Struct, TableMetadata, Transform};

use super::keys::{KeyColumn, KeySet};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::WrittenFile;
use crate::lake::manifest::LiveFile;
use crate::lake::name_mapping;
use crate::lake::schema::arrow_type;

/// The partitions that old rows can be in. A partition field of a key column has, by the same
/// transform, the same value in the old row as in the new one; other fields can differ. So files of an
/// older spec are compared too, by the fields that it shares with the spec of the new files.
pub(super) struct Partitions {
    by_spec: HashMap<i32, Spec>,
}

struct Spec {
    /// Indexes of the partition fields that follow from the key and that new files have too.
    fields: Vec<usize>,
    /// The values of those fields in the new files.
    tuples: HashSet<Vec<Option<Literal>>>,
}

impl Partitions {
    pub(super) fn of(new_files: &[WrittenFile], metadata: &TableMetadata, columns: &[KeyColumn]) -> Self {
        let mut by_spec = HashMap::new();
        let Some(written_by) = new_files.first().map(|new| new.spec_id) else { return Self { by_spec } };
        // Files of two specs cannot be compared with one set of values.
        if new_files.iter().any(|new| new.spec_id != written_by) {
            return Self { by_spec };
        }
        let shared = key_fields(metadata, written_by, columns);
        for spec in metadata.partition_specs_iter() {
            let own = key_fields(metadata, spec.spec_id(), columns);
            let pairs: Vec<(usize, usize)> = own
                .iter()
                .filter_map(|(index, of)| Some((*index, shared.iter().find(|(_, other)| other == of)?.0)))
                .collect();
            if pairs.is_empty() {
                continue;
            }
            let theirs: Vec<usize> = pairs.iter().map(|(_, new)| *new).collect();
            let tuples = new_files.iter().map(|new| tuple(new.file.partition(), &theirs)).collect();
            let fields = pairs.into_iter().map(|(own, _)| own).collect();
            by_spec.insert(spec.spec_id(), Spec { fields, tuples });
        }
        Self { by_spec }
    }

    pub(super) fn may_hold(&self, file: &LiveFile) -> bool {
        let Some(spec) = self.by_spec.get(&file.spec_id) else { return true };
        spec.tuples.contains(&tuple(file.file.partition(), &spec.fields))
    }
}

/// The partition fields that follow from the key: where they are, and what they are made of.
fn key_fields(
    metadata: &TableMetadata,
    spec_id: i32,
    columns: &[KeyColumn],
) -> Vec<(usize, (i32, Transform))> {
    let Some(spec) = metadata.partition_spec_by_id(spec_id) else { return Vec::new() };
    // Equal floats can have different bytes, and so different partitions: -0.0 and 0.0.
    let exact = |column: &&KeyColumn| !matches!(column.data_type, DataType::Float32 | DataType::Float64);
    let is_key = |id: i32| columns.iter().filter(exact).any(|column| column.field_id == id);
    let follows = |(_, field): &(usize, &iceberg::spec::PartitionField)| {
        is_key(field.source_id) && !matches!(field.transform, Transform::Void | Transform::Unknown)
    };
    let fields = spec.fields().iter().enumerate().filter(follows);
    fields.map(|(index, field)| (index, (field.source_id, field.transform))).collect()
}

fn tuple(partition: &Struct, fields: &[usize]) -> Vec<Option<Literal>> {
    let value = |index: &usize| {
        partition.fields().get(*index).cloned().flatten().map(|value| match value {
            // The column may have been widened between the two files.
            Literal::Primitive(PrimitiveLiteral::Int(value)) => Literal::long(value),
            other => other,
        })
    };
    fields.iter().map(value).collect()
}

/// For each file, whether its bounds leave room for one of the keys.
pub(super) fn by_bounds(files: &[&LiveFile], columns: &[KeyColumn], keys: &KeySet) -> Result<Vec<bool>> {
    let mut possible = vec![true; files.len()];
    if files.is_empty() {
        return Ok(possible);
    }
    for (index, column) in columns.iter().enumerate() {
        let bounds = |which: fn(&LiveFile) -> &HashMap<i32, Datum>| -> Result<ArrayRef> {
            let values =
                files.iter().map(|file| scalar(which(file).get(&column.field_id), &column.data_type));
            Ok(ScalarValue::iter_to_array(values.collect::<Result<Vec<_>>>()?)?)
        };
        let mins = bounds(|file| file.file.lower_bounds())?;
        let maxes = bounds(|file| file.file.upper_bounds())?;
        for (possible, within) in possible.iter_mut().zip(keys.values(index).within(&mins, &maxes)?) {
            *possible &= within;
        }
    }
    Ok(possible)
}

/// A bound as a value of the key's type; NULL, which means unknown, when it is missing or of a type
/// that the column cannot have been widened from.
fn scalar(bound: Option<&Datum>, data_type: &DataType) -> Result<ScalarValue> {
    use DataType as T;
    use PrimitiveLiteral as P;
    let unknown = || ScalarValue::try_from(data_type);
    let Some(bound) = bound else { return Ok(unknown()?) };
    let value = match (data_type, bound.literal()) {
        (T::Boolean, P::Boolean(value)) => ScalarValue::Boolean(Some(*value)),
        (T::Int32, P::Int(value)) => ScalarValue::Int32(Some(*value)),
        (T::Int64, P::Int(value)) => ScalarValue::Int64(Some((*value).into())),
        (T::Int64, P::Long(value)) => ScalarValue::Int64(Some(*value)),
        (T::Date32, P::Int(value)) => ScalarValue::Date32(Some(*value)),
        (T::Time64(_), P::Long(value)) => ScalarValue::Time64Microsecond(Some(*value)),
        (T::Timestamp(unit, zone), P::Long(value)) => {
            use arrow::datatypes::TimeUnit as U;
            match unit {
                U::Microsecond => ScalarValue::TimestampMicrosecond(Some(*value), zone.clone()),
                U::Nanosecond => ScalarValue::TimestampNanosecond(Some(*value), zone.clone()),
                _ => unknown()?,
            }
        }
        (T::Decimal128(precision, scale), P::Int128(value)) => {
            ScalarValue::Decimal128(Some(*value), *precision, *scale)
        }
        (T::Utf8, P::String(value)) => ScalarValue::Utf8(Some(value.clone())),
        (T::Binary, P::Binary(value)) => ScalarValue::Binary(Some(value.clone())),
        // A bound of a fixed-length column may be cut short; then it has no place in the column's type.
        (T::FixedSizeBinary(len), P::Binary(value)) if value.len() == *len as usize => {
            ScalarValue::FixedSizeBinary(*len, Some(value.clone()))
        }
        (T::FixedSizeBinary(16), P::UInt128(value)) => {
            ScalarValue::FixedSizeBinary(16, Some(value.to_be_bytes().to_vec()))
        }
        _ => unknown()?,
    };
    Ok(value)
}

/// The key's columns in the table's current schema.
pub(super) fn key_columns(metadata: &TableMetadata, key: &[String]) -> Result<Arc<[KeyColumn]>> {
    let schema = metadata.current_schema();
    let mapping = name_mapping::of(metadata)?;
    let column = |name: &String| {
        let field = schema.field_by_name(name).ok_or_else(|| {
            Error::new(ErrorKind::Config, "the key column does not exist").with("column", name)
        })?;
        if !field.field_type.is_primitive() {
            let message = format!("a column of type {} cannot be a key", field.field_type);
            return Err(Error::new(ErrorKind::Unsupported, message).with("column", name));
        }
        let data_type = arrow_type(&field.field_type, false);
        let names = mapping.iter().flat_map(|mapping| mapping.fields());
        let names = names.filter(|entry| entry.field_id() == Some(field.id));
        let names = names.flat_map(|entry| entry.names()).cloned().collect();
        Ok(KeyColumn { name: name.clone(), field_id: field.id, data_type, names })
    };
    let columns = key.iter().map(column).collect::<Result<Vec<_>>>()?;
    if columns.is_empty() {
        return Err(Error::new(ErrorKind::Internal, "rows can only be hidden by a key"));
    }
    Ok(columns.into())
}
