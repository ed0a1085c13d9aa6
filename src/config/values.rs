//! `values`: how values without an exact place in the lake are carried.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use crate::source::{OutOfRange, SubMicrosecond, UnboundedNumeric, ValuePolicy};

/// How values without an exact place in the lake are carried.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a map with `out_of_range`, `unbounded_numeric`, `sub_microsecond` or `types`"
)]
pub struct Values {
    /// Infinite dates and timestamps, `24:00:00`, and others outside of the lake's types.
    pub out_of_range: Option<OutOfRange>,
    /// Numbers that declare no precision, or more than 38 digits.
    pub unbounded_numeric: Option<UnboundedNumeric>,
    /// Times that are finer than the microsecond of the lake's types, such as `datetime2(7)`.
    pub sub_microsecond: Option<SubMicrosecond>,
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
            sub_microsecond: self.sub_microsecond.or(below.sub_microsecond),
            types,
        }
    }

    pub(super) fn policy(&self) -> ValuePolicy {
        ValuePolicy {
            out_of_range: self.out_of_range.unwrap_or_default(),
            unbounded_numeric: self.unbounded_numeric.unwrap_or_default(),
            sub_microsecond: self.sub_microsecond.unwrap_or_default(),
            types: self.types.clone(),
        }
    }
}
