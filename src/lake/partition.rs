//! Partition transforms in the words of Iceberg: `day(created_at)`, `bucket(16, id)`, `region`; and
//! batches divided by them.

use std::collections::HashMap;
use std::str::FromStr;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use arrow::row::{RowConverter, SortField};
use iceberg::arrow::{PartitionValueCalculator, arrow_struct_to_literal};
use iceberg::spec::{
    Literal, PartitionSpecRef, Schema, SchemaRef, Struct, StructType, Transform, UnboundPartitionSpec,
};

use super::names::encode;
use super::storage::iceberg_error;
use crate::error::{Error, ErrorKind, Result};

/// A partition spec of these terms, bound to the columns of `schema`.
pub(super) fn spec(schema: &Schema, terms: &[String]) -> Result<UnboundPartitionSpec> {
    let mut builder = UnboundPartitionSpec::builder();
    let mut names = Vec::new();
    for term in terms {
        let (transform, column) = parse(term)?;
        let field = schema.field_by_name(column).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("`{term}` names a column that does not exist"))
                .with("column", column)
        })?;
        transform.result_type(&field.field_type).map_err(|source| {
            Error::new(
                ErrorKind::Config,
                format!("`{term}` does not fit a column of type {}", field.field_type),
            )
            .with("column", column)
            .because(source)
        })?;
        let name = match transform {
            Transform::Identity => column.to_owned(),
            Transform::Bucket(_) => format!("{column}_bucket"),
            Transform::Truncate(_) => format!("{column}_trunc"),
            other => format!("{column}_{other}"),
        };
        if names.contains(&name) {
            return Err(
                Error::new(ErrorKind::Config, format!("`{term}` repeats a partition")).with("column", column)
            );
        }
        builder = builder.add_partition_field(field.id, &name, transform).map_err(|source| {
            Error::new(ErrorKind::Config, format!("`{term}` cannot stand beside the other partitions"))
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
