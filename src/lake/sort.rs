//! The order of rows in new files: `[region, created_at desc]`.
//!
//! ```text
//! batches ─▶ run (as much as a row group may be) ─▶ sorted ─▶ file
//! ```
//!
//! A writer sorts what it holds and no more: a run at a time, so that memory stays bounded. Pages of a
//! run have narrow bounds, which is what readers prune by. A file says that it is sorted only when it
//! is, from its first row to its last: when it is one run, or its runs happen to follow each other.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{SortOptions, concat_batches, take_record_batch};
use arrow::row::{OwnedRow, RowConverter, SortField as RowField};
use iceberg::spec::{
    NestedFieldRef, NullOrder, Schema, SchemaRef, SortDirection, SortField, SortOrder, SortOrderRef,
    TableMetadata, Transform,
};

use super::partition::field_of;
use super::schema::arrow_type;
use super::storage::iceberg_error;
use crate::error::{Error, ErrorKind, Result};

/// The sort order of these terms, for a new table with the columns of `schema`.
pub(super) fn order(schema: &Schema, terms: &[String]) -> Result<SortOrder> {
    build(schema, terms, |name| schema.field_by_name(name))
}

/// The sort order of these terms for a table that has another one now; `None` when it has this one.
pub(super) fn changed(
    metadata: &TableMetadata,
    schema: &Schema,
    terms: &[String],
) -> Result<Option<SortOrder>> {
    let wanted = build(schema, terms, |name| field_of(metadata, schema, name))?;
    Ok((wanted.fields != metadata.default_sort_order().fields).then_some(wanted))
}

fn build<'a>(
    schema: &Schema,
    terms: &[String],
    find: impl Fn(&str) -> Option<&'a NestedFieldRef>,
) -> Result<SortOrder> {
    let mut order = SortOrder::builder();
    let mut seen = Vec::new();
    for term in terms {
        let (column, direction, null_order) = parse(term)?;
        let field = find(column).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("`{term}` names a column that does not exist"))
                .with("column", column)
        })?;
        if !field.field_type.is_primitive() {
            let message = format!("rows cannot be sorted by a column of type {}", field.field_type);
            return Err(Error::new(ErrorKind::Config, message).with("column", column));
        }
        if seen.contains(&field.id) {
            return Err(Error::new(ErrorKind::Config, format!("`{term}` repeats a column of the order"))
                .with("column", column));
        }
        seen.push(field.id);
        let transform = Transform::Identity;
        order.with_sort_field(SortField { source_id: field.id, transform, direction, null_order });
    }
    order.build(schema).map_err(iceberg_error)
}

/// `created_at desc nulls last` → its parts. NULLs come first where rows ascend and last where they
/// descend, unless something else is said.
fn parse(term: &str) -> Result<(&str, SortDirection, NullOrder)> {
    use NullOrder as N;
    use SortDirection as D;
    let wrong = || {
        Error::new(ErrorKind::Config, format!("`{term}` is not an order"))
            .hint("write a column, `column desc`, or `column asc nulls last`")
    };
    let mut rest = term.trim();
    let mut cut = |ending: &str| {
        let start = rest.len().checked_sub(ending.len()).filter(|at| rest.is_char_boundary(*at))?;
        let fits = start > 0 && rest[start..].eq_ignore_ascii_case(ending);
        fits.then(|| rest = rest[..start].trim_end())
    };
    let nulls = cut(" nulls first").map(|()| N::First).or_else(|| cut(" nulls last").map(|()| N::Last));
    let direction = cut(" desc")
        .map(|()| D::Descending)
        .or_else(|| cut(" asc").map(|()| D::Ascending))
        .unwrap_or(D::Ascending);
    let usual = if direction == D::Ascending { N::First } else { N::Last };
    if rest.is_empty() { Err(wrong()) } else { Ok((rest, direction, nulls.unwrap_or(usual))) }
}

/// Sorts batches by a table's order.
pub(super) struct Sorter {
    order_id: i32,
    columns: Vec<usize>,
    converter: RowConverter,
}

impl Sorter {
    /// `None` for an order that says nothing, or nothing that can be followed: another engine may sort
    /// by transforms.
    pub(super) fn new(schema: &SchemaRef, order: &SortOrderRef) -> Result<Option<Self>> {
        if order.is_unsorted() || order.fields.iter().any(|field| field.transform != Transform::Identity) {
            return Ok(None);
        }
        let Ok(order_id) = i32::try_from(order.order_id) else { return Ok(None) };
        let mut columns = Vec::new();
        let mut fields = Vec::new();
        for field in &order.fields {
            let top = schema.as_struct().fields();
            let Some(index) = top.iter().position(|column| column.id == field.source_id) else {
                return Ok(None);
            };
            columns.push(index);
            let options = SortOptions {
                descending: field.direction == SortDirection::Descending,
                nulls_first: field.null_order == NullOrder::First,
            };
            fields.push(RowField::new_with_options(arrow_type(&top[index].field_type, false), options));
        }
        Ok(Some(Self { order_id, columns, converter: RowConverter::new(fields)? }))
    }

    /// The order's id, for files that are sorted.
    pub(super) fn order_id(&self) -> i32 {
        self.order_id
    }

    /// The rows of these batches in one, sorted; rows that are equal stay as they came.
    pub(super) fn sort(&self, batches: &[RecordBatch]) -> Result<Sorted> {
        let first = batches.first().ok_or_else(|| Error::new(ErrorKind::Internal, "nothing to sort"))?;
        let all = concat_batches(&first.schema(), batches)?;
        let columns: Vec<ArrayRef> =
            self.columns.iter().map(|index| Arc::clone(all.column(*index))).collect();
        let keys = self.converter.convert_columns(&columns)?;
        let mut places: Vec<u32> =
            (0..u32::try_from(keys.num_rows()).expect("a run has fewer than 2³² rows")).collect();
        let is_sorted = places.windows(2).all(|two| keys.row(two[0] as usize) <= keys.row(two[1] as usize));
        if !is_sorted {
            places.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
        }
        let ends = match (places.first(), places.last()) {
            (Some(first), Some(last)) => {
                Some((keys.row(*first as usize).owned(), keys.row(*last as usize).owned()))
            }
            _ => None,
        };
        let rows = if is_sorted { all } else { take_record_batch(&all, &UInt32Array::from(places))? };
        Ok(Sorted { rows, ends })
    }
}

/// Rows in order.
pub(super) struct Sorted {
    pub(super) rows: RecordBatch,
    /// The sort keys of the first and of the last row.
    pub(super) ends: Option<(OwnedRow, OwnedRow)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_in_the_words_of_sql() {
        use NullOrder as N;
        use SortDirection as D;
        for (term, column, direction, nulls) in [
            ("a", "a", D::Ascending, N::First),
            (" a DESC ", "a", D::Descending, N::Last),
            ("two words asc nulls last", "two words", D::Ascending, N::Last),
            ("desc desc nulls first", "desc", D::Descending, N::First),
            ("größe", "größe", D::Ascending, N::First),
        ] {
            assert_eq!(parse(term).unwrap(), (column, direction, nulls), "{term}");
        }
        assert_eq!(parse(" ").unwrap_err().kind(), ErrorKind::Config);
    }
}
