//! What the planner thinks of a statement before it runs.

use tokio_postgres::SimpleQueryMessage;

use crate::clients::postgres::Session;
use crate::error::Result;

/// Guesses of the planner; its unit of cost is the read of a page in order.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Estimate {
    pub(super) rows: f64,
    /// Bytes of a row.
    pub(super) width: f64,
    /// Until the first row is there.
    pub(super) first_row_cost: f64,
    pub(super) cost: f64,
}

impl Estimate {
    /// Of all rows.
    pub(super) fn bytes(&self) -> f64 {
        self.rows * self.width
    }
}

/// Asks the planner; nothing is run.
pub(super) async fn estimate(session: &Session, statement: &str) -> Result<Estimate> {
    let answers = session.simple_query(&format!("EXPLAIN (FORMAT JSON) {statement}")).await?;
    let text = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let plan: serde_json::Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let number = |name: &str| plan[0]["Plan"][name].as_f64().unwrap_or_default();
    Ok(Estimate {
        rows: number("Plan Rows"),
        width: number("Plan Width"),
        first_row_cost: number("Startup Cost"),
        cost: number("Total Cost"),
    })
}
