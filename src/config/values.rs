//! `values`: how values without an exact place in the lake are carried.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use crate::source::{OutOfRange, UnboundedNumeric, ValuePolicy};

/// How values without an exact place in the lake are carried.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a map with `out_of_range`, `unbounded_numeric` or `types`"
)]
pub struct Values {
    /// Infinite dates and timestamps, `24:00:00`, and others outside of the lake's types.
    pub out_of_range: Option<OutOfRange>,
    /// Numbers that declare no precision, or more than 38 digits.
    pub unbounded_numeric: Option<UnboundedNumeric>,
    /// Types by column, instead of the mapping's own: `text`, `decimal(20,4)`.
    pub types: BTreeMap<String, String>,
}

impl Values {
    pub(super) fn over(self, below: &Self) -> Self {
        let mut types = below.types.clone();
        types.extend(self.types);
        Self {
            out_of_range: self.out_of_range.or(below.out_of_range),
            unbounded_numeric: self.unbounded_numeric.or(below.unbounded_numeric),
            types,
        }
    }

    pub(super) fn policy(&self) -> ValuePolicy {
        ValuePolicy {
            out_of_range: self.out_of_range.unwrap_or_default(),
            unbounded_numeric: self.unbounded_numeric.unwrap_or_default(),
            types: self.types.clone(),
        }
    }
}
