//! The second half of a pass: what changed between two snapshots becomes rows of a target.

use arrow::datatypes::SchemaRef;

use super::{Context, LoadReport, Progress, Stream, TargetRef};
use crate::error::{Error, ErrorKind, Result};
use crate::target::TargetTable;

/// Brings a stream's target table to the lake's current snapshot.
pub async fn load(context: &Context, stream: &Stream, progress: &Progress) -> Result<LoadReport> {
    let _ = (context, stream, progress);
    Err(Error::new(ErrorKind::Unsupported, "not built yet"))
}

/// The target table as a stream wants it, for lake rows of this schema and key.
pub fn target_table(stream: &Stream, target: &TargetRef, schema: &SchemaRef, key: &[String]) -> TargetTable {
    TargetTable {
        id: target.table.clone(),
        schema: schema.clone(),
        key: key.to_vec(),
        deletes: stream.settings.deletes,
    }
}
