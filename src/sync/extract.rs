//! The first half of a pass: what changed in the source becomes a snapshot.

use super::{Context, ExtractReport, Progress, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::TableSpec;
use crate::memory::Budget;
use crate::source::{ReadPlan, ReadRequest};
use crate::table::TableDescription;

/// Reads one bounded change of a stream's source table and commits it.
pub async fn extract(context: &Context, stream: &Stream, progress: &Progress) -> Result<ExtractReport> {
    let _ = (context, stream, progress);
    Err(Error::new(ErrorKind::Unsupported, "not built yet"))
}

/// What a stream asks of its source, apart from the position.
pub fn read_request(stream: &Stream, table: &TableDescription, budget: Budget) -> Result<ReadRequest> {
    let _ = (stream, table, budget);
    Err(Error::new(ErrorKind::Unsupported, "not built yet"))
}

/// The lake table that a stream makes when there is none yet.
pub fn lake_table_plan(stream: &Stream, table: &TableDescription, plan: &ReadPlan) -> Result<TableSpec> {
    let _ = (stream, table, plan);
    Err(Error::new(ErrorKind::Unsupported, "not built yet"))
}
