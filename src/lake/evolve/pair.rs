//! Which column of the source is which field of the table.

use std::collections::HashMap;

use arrow::datatypes::{Field, Schema};
use iceberg::spec::NestedFieldRef;

use super::DROPPED;
use crate::lake::schema::kept_metadata;
use crate::table::SOURCE_COLUMN_ID;

/// The index in `wanted` of each field that goes on, by field id.
///
/// The source's own column ids come first: they know a column through renames. Only where they say
/// nothing, names do: when the source has no ids, or when none of them is known, because the table
/// there was made anew (restored from a dump, say).
///
/// A column that was dropped and made anew under its old name is another column: rows that were not
/// read since have other values in it than the lake kept of the old one. It pairs with no field.
pub(super) fn pair(
    fields: &[NestedFieldRef],
    properties: &HashMap<String, String>,
    wanted: &Schema,
) -> HashMap<i32, usize> {
    let known: HashMap<i32, HashMap<String, String>> =
        fields.iter().map(|field| (field.id, kept_metadata(properties, field.id))).collect();
    let id_of = |field: &NestedFieldRef| known[&field.id].get(SOURCE_COLUMN_ID);
    let mut pairs = HashMap::new();
    let mut left: Vec<(usize, &Field)> = Vec::new();
    for (index, from) in wanted.fields().iter().enumerate() {
        let id = from.metadata().get(SOURCE_COLUMN_ID);
        match fields.iter().find(|field| id.is_some() && id_of(field) == id) {
            Some(field) => {
                pairs.insert(field.id, index);
            }
            None => left.push((index, from)),
        }
    }
    let same_table = !pairs.is_empty();
    for (index, from) in left {
        let Some(field) = fields.iter().find(|field| field.name == *from.name()) else { continue };
        let is_another =
            same_table && from.metadata().contains_key(SOURCE_COLUMN_ID) && id_of(field).is_some();
        if !is_another && !known[&field.id].contains_key(DROPPED) {
            pairs.entry(field.id).or_insert(index);
        }
    }
    pairs
}
