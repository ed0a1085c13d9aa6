//! Rows into the staging table: bulk loads in chunks, and parameters for what is too long for them.
//!
//! The staging table is on the connection that merges it. Rows of a chunk are held until it is sent, for
//! the client borrows them; a chunk is as large as one round trip is worth, and bounded in bytes.

use futures::StreamExt;
use tiberius::{ColumnData, SqlBulkCopyOption, ToSql};

use super::encode::{Batch, Output};
use super::statements::{STAGING, Statements};
use crate::clients::mssql::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::target::Merge;

/// Rows and bytes of a bulk load: what the vendor advises, and what the smallest memory allows.
const CHUNK_ROWS: usize = 100_000;
const CHUNK_BYTES: usize = 16 << 20;

/// What was staged.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Staged {
    pub(super) rows: u64,
    pub(super) deletes: u64,
}

/// Makes the staging table and brings all changes into it.
pub(super) async fn run(
    session: &mut Session,
    statements: &Statements,
    outputs: &[Output],
    merge: &mut Merge,
) -> Result<Staged> {
    // Not by a procedure call: it would be gone with it.
    session.batch(&statements.create_staging()).await?;
    let columns = statements.staging_columns();
    let mut staged = Staged::default();
    let (mut chunk, mut rows, mut bytes) = (Vec::new(), 0, 0);
    while let Some(batch) = merge.changes.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        bytes += batch.get_array_memory_size();
        chunk.push(Batch::new(&batch, outputs)?);
        if rows >= CHUNK_ROWS || bytes >= CHUNK_BYTES {
            send(session, statements, &columns, outputs, &chunk, &mut staged).await?;
            chunk.clear();
            (rows, bytes) = (0, 0);
        }
    }
    send(session, statements, &columns, outputs, &chunk, &mut staged).await?;
    Ok(staged)
}

async fn send(
    session: &mut Session,
    statements: &Statements,
    columns: &[String],
    outputs: &[Output],
    chunk: &[Batch],
    staged: &mut Staged,
) -> Result<()> {
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let (mut sent, mut oversize) = (0, Vec::new());
    if chunk.iter().all(|batch| batch.rows() == 0) {
        return Ok(());
    }
    let mut load =
        session.bulk_insert_with_options(STAGING, &columns, SqlBulkCopyOption::TableLock.into(), &[]).await?;
    for batch in chunk {
        for row in 0..batch.rows() {
            let (cells, too_long) = batch.row(row, outputs)?;
            staged.deletes += u64::from(batch.deletes(row));
            if too_long {
                oversize.push(cells);
            } else {
                load.send(cells).await?;
                sent += 1;
            }
        }
    }
    let taken = load.finalize().await?.total();
    if taken != sent {
        let message = format!("the server took {taken} rows of {sent}");
        return Err(Error::new(ErrorKind::Internal, message));
    }
    staged.rows += sent + oversize.len() as u64;
    if !oversize.is_empty() {
        let insert = statements.insert_staged();
        for cells in oversize {
            let values: Vec<ColumnData<'_>> = cells.into_iter().map(parameter).collect();
            let values: Vec<&dyn ToSql> = values.iter().map(|value| value as &dyn ToSql).collect();
            session.run(&insert, &values).await?;
        }
    }
    Ok(())
}

/// A decimal as text: as a parameter it would declare its own digits, which may be more than any column's.
fn parameter(cell: ColumnData<'_>) -> ColumnData<'_> {
    match cell {
        ColumnData::Numeric(Some(number)) => {
            let scale = usize::from(number.scale());
            let digits = format!("{:0>width$}", number.value().unsigned_abs(), width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            let sign = if number.value() < 0 { "-" } else { "" };
            ColumnData::String(Some(format!("{sign}{whole}.{fraction}").into()))
        }
        other => other,
    }
}
