//! Which of the rows that the lake lacks came too late for any pass to see them.

use std::sync::Arc;

use arrow::array::Array;

use super::look::{Found, Kind, Look};
use super::repair::Picker;
use super::side::Side;
use crate::error::Result;
use crate::lake::{LakeTable, Lateness, micros};
use crate::sync::{self, Context, Progress, Stream};

/// Of the rows that the lake lacks, or has otherwise, those with a time from before the position. Nothing,
/// where changes are not found by a time.
pub(super) async fn late(
    context: &Context,
    stream: &Stream,
    table: &LakeTable,
    look: &Look,
    found: &Arc<Found>,
    progress: &Arc<Progress>,
) -> Result<Lateness> {
    let mut late = Lateness::default();
    let position = table.position()?.map(|position| position.watermark);
    let plan = sync::plan_from(stream, position, context.budget).await?;
    let (Some(cursor), Some(known_to)) = (plan.cursor, plan.known_to) else { return Ok(late) };
    let source = Side::source(context, stream, look.only.as_ref()).await?.open().await?;
    for picker in source.drain(|| Picker::new(look, found), progress).await? {
        for batch in &picker.rows {
            let Some(times) = batch.column_by_name(&cursor).and_then(micros) else { return Ok(late) };
            let keys = picker.keys(batch)?;
            for (row, key) in keys.iter().enumerate() {
                let lacks = matches!(found.kind(key.data()), Some(Kind::Missing | Kind::Different));
                if lacks && times.is_valid(row) && times.value(row) < known_to {
                    late.add(known_to - times.value(row));
                }
            }
        }
    }
    Ok(late)
}
