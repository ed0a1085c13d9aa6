//! `values`: how values without an exact place in the lake are carried.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use crate::source::{OnUnfit, OutOfRange, SubMicrosecond, UnboundedNumeric, ValuePolicy};

/// How values without an exact place in the lake are carried.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a map with `out_of_range`, `unbounded_numeric`, `sub_microsecond`, `on_unfit` or `types`"
)]
pub struct Values {
    /// Infinite dates and timestamps, `24:00:00`, and others outside of the lake's types.
    pub out_of_range: Option<OutOfRange>,
    /// Numbers that declare no precision, or more than 38 digits.
    pub unbounded_numeric: Option<UnboundedNumeric>,
    /// Times that are finer than the microsecond of the lake's types, such as `datetime2(7)`.
    pub sub_microsecond: Option<SubMicrosecond>,
    /// What happens to rows with a value that its column cannot hold, and that none of these replaces.
    pub on_unfit: Option<OnUnfit>,
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
            on_unfit: self.on_unfit.or(below.on_unfit),
            types,
        }
    }

    pub(super) fn policy(&self) -> ValuePolicy {
        ValuePolicy {
            out_of_range: self.out_of_range.unwrap_or_default(),
            unbounded_numeric: self.unbounded_numeric.unwrap_or_default(),
            sub_microsecond: self.sub_microsecond.unwrap_or_default(),
            on_unfit: self.on_unfit.unwrap_or_default(),
            types: self.types.clone(),
        }
    }
}
