//! A snapshot as a DataFusion table.

use std::sync::Arc;

use datafusion::catalog::TableProvider;

use super::LakeTable;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

impl LakeTable {
    /// The table as it was at a snapshot (`None`: now), for DataFusion. Deletes are applied.
    pub async fn provider(&self, at: Option<SnapshotId>) -> Result<Arc<dyn TableProvider>> {
        let _ = at;
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }
}
