//! A snapshot range → at most one change per key: DataFusion, no IO of its own.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::runtime_env::RuntimeEnv;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::TableDelta;

/// The newest change of each key, sorted by key; the table's columns and `_op`. Without a key, all
/// added rows as they are.
pub async fn collapse(
    delta: &TableDelta,
    key: &[String],
    runtime: Arc<RuntimeEnv>,
) -> Result<SendableRecordBatchStream> {
    let _ = (delta, key, runtime);
    Err(Error::new(ErrorKind::Unsupported, "not built yet"))
}
