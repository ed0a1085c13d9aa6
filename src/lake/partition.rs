//! Partition transforms in the words of Iceberg: `day(created_at)`, `bucket(16, id)`, `region`; and
//! batches divided by them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::str::FromStr;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use arrow::row::{RowConverter, SortField};
use iceberg::arrow::{PartitionValueCalculator, arrow_struct_to_literal};
use iceberg::spec::{
    Literal, NestedFieldRef, PartitionSpecRef, Schema, SchemaRef, Struct, StructType, TableMetadata,
    Transform, UnboundPartitionSpec,
};

use super::names::encode;
use super::storage::iceberg_error;
use crate::error::{Error, ErrorKind, Result};

/// A partition spec of these terms, for a new table with the columns of `schema`.
pub(super) fn spec(schema: &Schema, terms: &[String]) -> Result<UnboundPartitionSpec> {
    build(schema, &parsed(terms, |name| schema.field_by_name(name))?, |_, _| false)
}

/// The partition spec of these terms for a table that has another one now; `None` when it has this one.
pub(super) fn changed(
    metadata: &TableMetadata,
    schema: &Schema,
    terms: &[String],
) -> Result<Option<UnboundPartitionSpec>> {
    let wanted = parsed(terms, |name| field_of(metadata, schema, name))?;
    let current = metadata.default_partition_spec();
    let current = current.fields().iter().map(|field| (field.source_id, field.transform));
    let current = current.filter(|(_, transform)| *transform != Transform::Void);
    if current.eq(wanted.iter().map(|term| (term.field.id, term.transform))) {
        return Ok(None);
    }
    // Readers that look at all partitions of a table know them by name.
    let is_taken = |name: &str, term: &Term<'_>| {
        let mut fields = metadata.partition_specs_iter().flat_map(|spec| spec.fields());
        let is_another = fields.any(|field| {
            field.name == name && (field.source_id, field.transform) != (term.field.id, term.transform)
        });
        let is_column = metadata.schemas_iter().any(|schema| {
            schema
                .field_by_name(name)
                .is_some_and(|field| term.transform != Transform::Identity || field.id != term.field.id)
        });
        is_another || is_column
    };
    build(schema, &wanted, is_taken).map(Some)
}

/// The field that a user means by a name: a column's name now, else one that it had before. A rename in
/// the source does not stop streams whose configuration says the old name.
pub(super) fn field_of<'a>(
    metadata: &'a TableMetadata,
    schema: &'a Schema,
    name: &str,
) -> Option<&'a NestedFieldRef> {
    schema.field_by_name(name).or_else(|| {
        let mut schemas: Vec<_> = metadata.schemas_iter().collect();
        schemas.sort_by_key(|schema| Reverse(schema.schema_id()));
        let ids = schemas.into_iter().filter_map(|schema| schema.field_id_by_name(name));
        ids.filter_map(|id| schema.field_by_id(id)).next()
    })
}

/// A transform of a column.
struct Term<'a> {
    /// As the user wrote it.
    text: &'a str,
    transform: Transform,
    field: &'a NestedFieldRef,
}

fn parsed<'a>(
    terms: &'a [String],
    find: impl Fn(&str) -> Option<&'a NestedFieldRef>,
) -> Result<Vec<Term<'a>>> {
    let term = |text: &'a String| {
        let (transform, column) = parse(text)?;
        let field = find(column).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("`{text}` names a column that does not exist"))
                .with("column", column)
        })?;
        transform.result_type(&field.field_type).map_err(|source| {
            Error::new(
                ErrorKind::Config,
                format!("`{text}` does not fit a column of type {}", field.field_type),
            )
            .with("column", column)
            .because(source)
        })?;
        Ok(Term { text, transform, field })
    };
    terms.iter().map(term).collect()
}

fn build(
    schema: &Schema,
    terms: &[Term<'_>],
    is_taken: impl Fn(&str, &Term<'_>) -> bool,
) -> Result<UnboundPartitionSpec> {
    let mut builder = UnboundPartitionSpec::builder();
    let mut names = Vec::new();
    for term in terms {
        let Term { text, transform, field } = term;
        let column = schema.name_by_field_id(field.id).unwrap_or(&field.name);
        let mut name = match transform {
            Transform::Identity => column.to_owned(),
            Transform::Bucket(_) => format!("{column}_bucket"),
            Transform::Truncate(_) => format!("{column}_trunc"),
            other => format!("{column}_{other}"),
        };
        if names.contains(&name) {
            return Err(
                Error::new(ErrorKind::Config, format!("`{text}` repeats a partition")).with("column", column)
            );
        }
        if is_taken(&name, term) {
            name = match transform {
                Transform::Bucket(number) | Transform::Truncate(number) => format!("{name}_{number}"),
                _ => name,
            };
            while is_taken(&name, term) {
                name.push('_');
            }
        }
        builder = builder.add_partition_field(field.id, &name, *transform).map_err(|source| {
            Error::new(ErrorKind::Config, format!("`{text}` cannot stand beside the other partitions"))
                .with("column", column)
                .hint("a column has at most one of year, month, day and hour")
                .because(source)
        })?;
        names.push(name);
    }
    Ok(builder.build())
}

/// `bucket(16, id)` → the transform and the column.
fn parse(term: &str) -> Result<(Transform, &str)> {
    let wrong = || {
        Error::new(ErrorKind::Config, format!("`{term}` is not a partition transform"))
            .hint("write a column, or year(c), month(c), day(c), hour(c), bucket(N, c), truncate(W, c)")
    };
    let text = term.trim();
    let Some((name, arguments)) = text.split_once('(') else {
        return if text.is_empty() { Err(wrong()) } else { Ok((Transform::Identity, text)) };
    };
    let arguments = arguments.strip_suffix(')').ok_or_else(wrong)?.trim();
    let name = name.trim().to_ascii_lowercase();
    let (transform, column) = match name.as_str() {
        "bucket" | "truncate" => {
            let (number, column) = arguments.split_once(',').ok_or_else(wrong)?;
            let number = number.trim().parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
            (Transform::from_str(&format!("{name}[{number}]")).map_err(|_| wrong())?, column.trim())
        }
        "identity" => (Transform::Identity, arguments),
        // The plural is Iceberg's function name, the singular its transform's.
        "year" | "years" => (Transform::Year, arguments),
        "month" | "months" => (Transform::Month, arguments),
        "day" | "days" => (Transform::Day, arguments),
        "hour" | "hours" => (Transform::Hour, arguments),
        _ => return Err(wrong()),
    };
    if column.is_empty() { Err(wrong()) } else { Ok((transform, column)) }
}

/// Divides batches by a partition spec.
pub(super) struct Splitter {
    spec: PartitionSpecRef,
    values: StructType,
    calculator: PartitionValueCalculator,
}

impl Splitter {
    /// `None` for a table without partitions.
    pub(super) fn new(schema: &SchemaRef, spec: &PartitionSpecRef) -> Result<Option<Self>> {
        if spec.is_unpartitioned() {
            return Ok(None);
        }
        let calculator = PartitionValueCalculator::try_new(spec, schema).map_err(iceberg_error)?;
        let values = spec.partition_type(schema).map_err(iceberg_error)?;
        Ok(Some(Self { spec: spec.clone(), values, calculator }))
    }

    /// The rows of each partition, in their order; partitions by their first row.
    pub(super) fn split(&self, batch: &RecordBatch) -> Result<Vec<(Struct, RecordBatch)>> {
        let values = self.calculator.calculate(&with_large_binary(batch)?).map_err(iceberg_error)?;
        let mut groups = groups(&values)?;
        if let [_] = groups.as_slice() {
            return Ok(vec![(self.partition(&values, 0)?, batch.clone())]);
        }
        let mut parts = Vec::with_capacity(groups.len());
        for rows in groups.drain(..) {
            let partition = self.partition(&values, rows[0] as usize)?;
            parts.push((partition, take_record_batch(batch, &UInt32Array::from(rows))?));
        }
        Ok(parts)
    }

    fn partition(&self, values: &ArrayRef, row: usize) -> Result<Struct> {
        let one = values.slice(row, 1);
        let mut literals = arrow_struct_to_literal(&one, &self.values).map_err(iceberg_error)?;
        match literals.pop().flatten() {
            Some(Literal::Struct(partition)) => Ok(partition),
            _ => Err(Error::new(ErrorKind::Internal, "a row has no partition")),
        }
    }

    /// Where files of a partition lie: for people; readers go by the manifest.
    pub(super) fn directory(&self, partition: &Struct) -> String {
        let mut parts = Vec::new();
        for ((field, kind), value) in
            self.spec.fields().iter().zip(self.values.fields()).zip(partition.iter())
        {
            let text = field.transform.to_human_string(&kind.field_type, value);
            // A name of a file may not be endless.
            let text: String = text.chars().take(40).collect();
            parts.push(format!("{}={}", encode(&field.name), encode(&text)));
        }
        parts.join("/")
    }
}

/// iceberg's partition values of type `binary` are large ones.
fn with_large_binary(batch: &RecordBatch) -> Result<RecordBatch> {
    if !batch.schema_ref().fields().iter().any(|field| *field.data_type() == DataType::Binary) {
        return Ok(batch.clone());
    }
    let mut fields: Vec<Field> = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if *field.data_type() == DataType::Binary {
            fields.push(field.as_ref().clone().with_data_type(DataType::LargeBinary));
            columns.push(cast(column, &DataType::LargeBinary)?);
        } else {
            fields.push(field.as_ref().clone());
            columns.push(column.clone());
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(ArrowSchema::new(fields).into(), columns, &options)?)
}

/// The rows of each different value, in the order of their first rows.
fn groups(values: &ArrayRef) -> Result<Vec<Vec<u32>>> {
    let columns = values.as_struct().columns();
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let rows = RowConverter::new(fields)?.convert_columns(columns)?;
    let mut numbers: HashMap<&[u8], usize> = HashMap::new();
    let mut groups: Vec<Vec<u32>> = Vec::new();
    // Neighbours are often in one partition: then there is nothing to look up.
    let mut last: Option<(&[u8], usize)> = None;
    for i in 0..rows.num_rows() {
        let row = rows.row(i).data();
        let number = match last {
            Some((value, number)) if value == row => number,
            _ => *numbers.entry(row).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            }),
        };
        last = Some((row, number));
        groups[number].push(u32::try_from(i).expect("a batch has fewer than 2³² rows"));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_in_the_words_of_iceberg() {
        for (term, transform, column) in [
            ("region", Transform::Identity, "region"),
            ("day(created_at)", Transform::Day, "created_at"),
            ("days( created_at )", Transform::Day, "created_at"),
            ("bucket(16, id)", Transform::Bucket(16), "id"),
            ("Truncate(4,name)", Transform::Truncate(4), "name"),
        ] {
            assert_eq!(parse(term).unwrap(), (transform, column));
        }
        for wrong in ["", "day(", "bucket(id)", "bucket(0, id)", "week(x)", "day()"] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::Config, "{wrong}");
        }
    }
}
