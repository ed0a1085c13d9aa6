//! Rows that come late, or in another order than they happened.
//!
//! ```text
//!          W - lag            W                H
//! ────────────┼───────────────┼────────────────┼───▶ cursor
//!  not found  │  read again:  │   due now      │ waits
//!             │  late if new  │                │
//! ```
//!
//! A pass reads what lies within `lag` behind the position once more. What the lake does not have with the
//! same cursor came late; the commit counts it as it looks for old rows. What is later than `lag` no pass
//! sees: `frazil compare` finds it.
//!
//! Where the source's own key says that it has one row of each, what it shows now is the newest there is,
//! whatever its cursor says: an application's clock may have gone back. Where several rows of the source
//! have one key, as in a table of events, the one with the greatest cursor counts, in whatever order they
//! come.

use std::time::Duration;

use crate::lake::{EventOrder, Lateness, TableMode};
use crate::source::{Extent, ReadPlan};

/// How the rows of a reading are ordered, where their arrival alone does not say it.
pub(super) fn order(
    plan: &ReadPlan,
    mode: TableMode,
    key_enforced: bool,
    lag: Duration,
) -> Option<EventOrder> {
    if mode != TableMode::Merge || plan.extent == Extent::Log {
        return None;
    }
    let known_to = plan.known_to.filter(|_| plan.extent == Extent::Changed && !lag.is_zero());
    let order = EventOrder { column: plan.cursor.clone()?, by_event: !key_enforced, known_to };
    (order.by_event || order.known_to.is_some()).then_some(order)
}

/// What the user should know of late rows.
pub(super) fn notes(late: &Lateness, plan: &ReadPlan, lag: Duration) -> Vec<String> {
    let cursor = plan.cursor.as_deref().unwrap_or_default();
    let mut notes = Vec::new();
    if late.rows > 0 {
        let mut note = format!("{} rows came late: their `{cursor}` lies before the position", late.rows);
        if let Some(suggested) = late.suggested_lag().filter(|suggested| *suggested > lag) {
            note += &format!(
                ", by almost as much as `lag`, so that others may not have been found; set `lag: {}s`, and see `frazil compare`",
                suggested.as_secs()
            );
        }
        notes.push(note);
    }
    if late.outdated > 0 {
        notes.push(format!(
            "{} rows are older by `{cursor}` than what the lake has under their key, and changed nothing",
            late.outdated
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_late_rows_reach_the_end_of_is_too_short() {
        let plan = |extent, known_to| ReadPlan {
            change: crate::source::ChangeDetection::Timestamp,
            cursor: Some("at".to_owned()),
            cursor_indexed: true,
            extent,
            resumable: false,
            continues: true,
            notes: Vec::new(),
            statement: String::new(),
            known_to,
            rows: None,
            bytes: None,
            schema: std::sync::Arc::new(arrow::datatypes::Schema::empty()),
        };
        let minute = Duration::from_secs(60);
        let changed = plan(Extent::Changed, Some(7));
        let mut late = Lateness::default();
        late.add(3_000_000);
        assert_eq!(notes(&late, &changed, minute), ["1 rows came late: their `at` lies before the position"]);
        late.add(50_000_000);
        assert!(notes(&late, &changed, minute)[0].contains("set `lag: 120s`"));

        let by = |plan: &ReadPlan, mode, enforced, lag| {
            order(plan, mode, enforced, lag).map(|order| (order.by_event, order.known_to))
        };
        assert_eq!(by(&changed, TableMode::Merge, true, Duration::ZERO), None);
        assert_eq!(by(&changed, TableMode::Merge, true, minute), Some((false, Some(7))));
        assert_eq!(by(&changed, TableMode::Merge, false, Duration::ZERO), Some((true, None)));
        assert_eq!(by(&changed, TableMode::Append, false, minute), None);
        assert_eq!(by(&plan(Extent::Log, None), TableMode::Merge, false, minute), None);
    }
}
