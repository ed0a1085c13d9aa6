//! How the values of a column lie in the files of a snapshot, by the metadata alone.

use datafusion::common::ScalarValue;

use super::LakeTable;
use super::file_statistics::scalar;
use crate::delta::SnapshotId;
use crate::error::Result;

/// A data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// Its rows, hidden ones among them.
    pub rows: u64,
    /// The least value of the column, or less.
    pub least: ScalarValue,
    /// The greatest value, or more.
    pub greatest: ScalarValue,
}

impl LakeTable {
    /// The data files of a snapshot whose metadata say between which values a column lies. Reads manifests, and
    /// no data.
    pub async fn spread(&self, column: &str, at: SnapshotId) -> Result<Vec<Spread>> {
        let Some(field) = self.table.metadata().current_schema().field_id_by_name(column) else {
            return Ok(Vec::new());
        };
        let live = self.live_files(Some(at)).await?;
        let spread = live.data.iter().filter_map(|file| {
            let bound = |bounds: &std::collections::HashMap<i32, iceberg::spec::Datum>| {
                bounds.get(&field).and_then(scalar)
            };
            Some(Spread {
                rows: file.file.record_count(),
                least: bound(file.file.lower_bounds())?,
                greatest: bound(file.file.upper_bounds())?,
            })
        });
        Ok(spread.collect())
    }
}
