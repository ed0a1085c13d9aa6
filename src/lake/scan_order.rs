//! The order that the rows of a scan have anyway, for queries that want them so.
//!
//! ```text
//! order: day              group 1          group 2
//! files sorted by it:     [1 ‥ 4] [9 ‥ 12]   [5 ‥ 8] [13 ‥ 15]     each group in order, merged by who needs it
//! files that overlap:     [1 ‥ 9] [5 ‥ 12]                       nothing is said
//! ```
//!
//! A file says whether its rows are in the table's order. That is only believed of columns about whose
//! order no two engines disagree: numbers that are no floats, dates and times. Texts have collations,
//! floats have NaN. Rows that are deleted leave the others in their order.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use iceberg::spec::{DataFile, NullOrder, SortDirection, TableMetadata, Transform};

use super::field_ids::id;
use super::scan::dealt;

/// The order that each of these files has by itself, if all have the table's.
pub(super) fn of_files<'a>(
    files: impl IntoIterator<Item = &'a DataFile>,
    metadata: &TableMetadata,
    columns: &Schema,
) -> Option<LexOrdering> {
    let order = metadata.default_sort_order();
    let order_id = i32::try_from(order.order_id).ok().filter(|_| !order.is_unsorted())?;
    if files.into_iter().any(|file| file.sort_order_id() != Some(order_id)) {
        return None;
    }
    // What comes after a column that is not believed says nothing by itself.
    let terms = order.fields.iter().map_while(|term| {
        let source = term.source_id.to_string();
        let index = columns.fields().iter().position(|field| id(field) == Some(&source))?;
        let field = columns.field(index);
        let believed = term.transform == Transform::Identity && is_plain(field.data_type());
        let options = SortOptions {
            descending: term.direction == SortDirection::Descending,
            nulls_first: term.null_order == NullOrder::First,
        };
        believed.then(|| PhysicalSortExpr::new(Arc::new(Column::new(field.name(), index)), options))
    });
    LexOrdering::new(terms)
}

/// The files in so many groups of about the same size, each in order from its first row to its last. `None`
/// where files may overlap.
pub(super) fn in_groups(
    mut files: Vec<PartitionedFile>,
    order: &LexOrdering,
    groups: usize,
) -> Option<Vec<FileGroup>> {
    let first = order.first();
    let column = first.expr.downcast_ref::<Column>()?.index();
    // One file a group needs no proof.
    if files.len() > groups.max(1) {
        let mut known: Vec<_> =
            files.into_iter().map(|file| Some((range(&file, column)?, file))).collect::<Option<_>>()?;
        known.sort_by(|(a, _), (b, _)| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
        // Not even the last value of one and the first of the next are equal: so the other columns of the
        // order do not matter.
        if !known.windows(2).all(|two| two[0].0.1 < two[1].0.0) {
            return None;
        }
        files = known.into_iter().map(|(_, file)| file).collect();
        if first.options.descending {
            files.reverse();
        }
    }
    Some(dealt(files, groups))
}

/// The least and the greatest value of a column that has no NULL. They may be wider than the values are.
fn range(file: &PartitionedFile, column: usize) -> Option<(ScalarValue, ScalarValue)> {
    let known = file.statistics.as_ref()?.column_statistics.get(column)?;
    let whole = known.null_count.get_value() == Some(&0);
    let (min, max) = (known.min_value.get_value()?, known.max_value.get_value()?);
    (whole && !min.is_null() && !max.is_null()).then(|| (min.clone(), max.clone()))
}

fn is_plain(data_type: &DataType) -> bool {
    data_type.is_integer() || data_type.is_decimal() || data_type.is_temporal()
}

#[cfg(test)]
mod tests {
    use datafusion::common::stats::Precision;
    use datafusion::common::{ColumnStatistics, Statistics};

    use super::*;

    /// Files with these values and NULLs, of one byte each, in two groups.
    fn grouped(files: &[(i64, i64, usize)], descending: bool) -> Option<String> {
        let file = |(min, max, nulls): &(i64, i64, usize)| {
            let column = ColumnStatistics {
                null_count: Precision::Exact(*nulls),
                min_value: Precision::Inexact(ScalarValue::from(*min)),
                max_value: Precision::Inexact(ScalarValue::from(*max)),
                ..ColumnStatistics::new_unknown()
            };
            let statistics = Statistics { column_statistics: vec![column], ..Statistics::default() };
            PartitionedFile::new(format!("{min}-{max}"), 1).with_statistics(Arc::new(statistics))
        };
        let options = SortOptions { descending, nulls_first: true };
        let order = PhysicalSortExpr::new(Arc::new(Column::new("c", 0)), options);
        let groups = in_groups(files.iter().map(file).collect(), &LexOrdering::new([order])?, 2)?;
        let names = groups.iter().map(|group| {
            let names: Vec<_> = group.iter().map(|file| file.object_meta.location.to_string()).collect();
            names.join(" ")
        });
        Some(names.collect::<Vec<_>>().join(" | "))
    }

    #[test]
    fn files_that_do_not_overlap_are_in_order() {
        let files = [(9, 12, 0), (1, 4, 0), (13, 15, 0), (5, 8, 0)];
        assert_eq!(grouped(&files, false).as_deref(), Some("1-4 9-12 | 5-8 13-15"));
        assert_eq!(grouped(&files, true).as_deref(), Some("13-15 5-8 | 9-12 1-4"));
    }

    #[test]
    fn files_that_may_overlap_are_not() {
        assert_eq!(grouped(&[(1, 5, 0), (4, 8, 0), (9, 9, 0)], false), None);
        assert_eq!(grouped(&[(1, 4, 0), (4, 8, 0), (9, 9, 0)], false), None, "a second column would decide");
        assert_eq!(
            grouped(&[(1, 4, 0), (5, 8, 1), (9, 9, 0)], false),
            None,
            "where the NULL is, is not known"
        );
        assert_eq!(grouped(&[(1, 5, 7), (4, 8, 0)], false).as_deref(), Some("1-5 | 4-8"), "a group each");
    }
}
