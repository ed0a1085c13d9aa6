//! The one byte budget of the process, divided among the stages that hold rows.
//!
//! ```text
//! total ─┬─ fixed     the program, connections, metadata
//!        ├─ readers   a batch and a socket buffer for each parallel stream
//!        ├─ writers   a row group for each parallel stream
//!        └─ queries   DataFusion's pool: sort, merge, lookup; spills to disk beyond it
//! ```

use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;

use crate::error::{Error, ErrorKind, Result};

/// What the program needs whatever the data: code, runtime, connections, table metadata.
const FIXED: u64 = 64 << 20;
/// The smallest budget that leaves room for one stream.
const SMALLEST: u64 = 128 << 20;
/// What a stream of a query holds: the columns of a row group as they are stored, and batches on their way.
const QUERY_STREAM: u64 = 48 << 20;
/// Used when nothing is said.
pub const DEFAULT: u64 = 256 << 20;

/// How much memory each stage may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    total: u64,
    parallel: usize,
}

impl Budget {
    /// Divides `total` bytes among `parallel` streams of rows.
    pub fn new(total: u64, parallel: usize) -> Result<Self> {
        if total < SMALLEST {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a memory budget of {} MiB is too small", total >> 20),
            )
            .hint(format!("give at least `--memory {}MiB`", SMALLEST >> 20)));
        }
        Ok(Self { total, parallel: parallel.max(1) })
    }

    /// All of it.
    pub fn total(self) -> u64 {
        self.total
    }

    /// Streams of rows that may be open at once.
    pub fn parallel(self) -> usize {
        self.parallel
    }

    /// A batch of rows in a reader: Arrow bytes.
    pub fn batch_bytes(self) -> usize {
        (self.rows() / 8 / self.parallel as u64).clamp(1 << 20, 16 << 20) as usize
    }

    /// A row group under construction in one writer: encoded bytes. Near its end it is held three times:
    /// as pages, as the row group, and as parts on their way to the store.
    pub fn row_group_bytes(self) -> usize {
        (self.rows() / 8 / self.parallel as u64).clamp(4 << 20, 64 << 20) as usize
    }

    /// DataFusion's pool: sort, merge, lookup.
    pub fn query_bytes(self) -> usize {
        (self.rows() / 2) as usize
    }

    /// Streams that a query reads at once on so many cores.
    pub fn query_streams(self, cores: usize) -> usize {
        ((self.rows() / QUERY_STREAM) as usize).clamp(2, cores.max(2))
    }

    /// A builder of DataFusion runtimes that stay within the budget and spill to the temporary directory.
    pub fn runtime(self) -> RuntimeEnvBuilder {
        RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(self.query_bytes())))
            .with_disk_manager_builder(
                DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory),
            )
    }

    fn rows(self) -> u64 {
        self.total - FIXED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_a_stream_for_each_core_that_memory_is_there_for() {
        let streams = |mebibytes: u64, cores| Budget::new(mebibytes << 20, 1).unwrap().query_streams(cores);
        assert_eq!([streams(128, 1), streams(128, 64)], [2, 2]);
        assert_eq!([streams(256, 2), streams(256, 64)], [2, 4]);
        assert_eq!([streams(4096, 16), streams(4096, 128)], [16, 84]);
    }
}
