//! Partitions and order of files that are still to be written; those that are there keep theirs.

use std::collections::HashSet;

use iceberg::TableUpdate;
use iceberg::spec::{Schema, TableMetadata};

use super::Wanted;
use crate::error::Result;
use crate::lake::{partition, sort};

/// Fields that partitions or sort orders stand on, old ones included: their files are still there.
pub(super) fn bound(metadata: &TableMetadata) -> HashSet<i32> {
    let partitions =
        metadata.partition_specs_iter().flat_map(|spec| spec.fields()).map(|field| field.source_id);
    let orders = metadata.sort_orders_iter().flat_map(|order| &order.fields).map(|field| field.source_id);
    partitions.chain(orders).collect()
}

/// Adds what makes partitions and order as they are wanted, after `schema` has become the table's.
pub(super) fn change(
    metadata: &TableMetadata,
    schema: &Schema,
    wanted: &Wanted<'_>,
    updates: &mut Vec<TableUpdate>,
    steps: &mut Vec<String>,
) -> Result<()> {
    if let Some(terms) = wanted.partition_by
        && let Some(spec) = partition::changed(metadata, schema, terms)?
    {
        updates.extend([TableUpdate::AddSpec { spec }, TableUpdate::SetDefaultSpec { spec_id: -1 }]);
        steps.push(match terms {
            [] => "new files are not partitioned any more, older files stay as they are".to_owned(),
            terms => {
                format!("new files are partitioned by {}, older files stay as they are", terms.join(", "))
            }
        });
    }
    if let Some(terms) = wanted.sort_by
        && let Some(order) = sort::changed(metadata, schema, terms)?
    {
        updates.push(TableUpdate::AddSortOrder { sort_order: order });
        updates.push(TableUpdate::SetDefaultSortOrder { sort_order_id: -1 });
        steps.push(match terms {
            [] => "new files are not sorted any more, older files stay as they are".to_owned(),
            terms => format!("new files are sorted by {}, older files stay as they are", terms.join(", ")),
        });
    }
    Ok(())
}
