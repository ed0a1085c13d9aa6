//! Rows into the staging table: bulk loads in chunks, and parameters for what is too long for them.
//!
//! The staging table is on the connection that merges it. Rows of a chunk are held until it is sent, for
//! the client borrows them; a chunk is as large as one round trip is worth, and bounded in bytes.

use futures::StreamExt;
use tiberius::{ColumnData, SqlBulkCopyOption, ToSql, TokenRow};

use super::encode::{Batch, Output};
use super::statements::{STAGING, Statements};
use crate::clients::mssql::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::target::{Merge, Refusals};

/// Rows and bytes of a bulk load: what the vendor advises, and what the smallest memory allows.
const CHUNK_ROWS: usize = 100_000;
const CHUNK_BYTES: usize = 16 << 20;

/// What was staged.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// All rows, with those that are put aside.
    pub(super) rows: u64,
    pub(super) deletes: u64,
    /// The numbers of rows that no column can take, and why: they are put aside.
    pub(super) unfit: Vec<(i64, String)>,
}

/// Makes the staging table and brings all changes into it. Where rows are taken apart they are numbered from
/// 1; where they may be refused, one with a value that does not fit is put aside.
pub(super) async fn run(
    session: &mut Session,
    statements: &Statements,
    outputs: &[Output],
    merge: &mut Merge,
    refusals: Option<&dyn Refusals>,
) -> Result<Staged> {
    // Not by a procedure call: it would be gone with it.
    session.batch(&statements.create_staging()).await?;
    let mut stage = Stage {
        session,
        statements,
        columns: statements.staging_columns(),
        outputs,
        refusals,
        staged: Staged::default(),
    };
    let (mut chunk, mut rows, mut bytes) = (Vec::new(), 0, 0);
    while let Some(batch) = merge.changes.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        bytes += batch.get_array_memory_size();
        chunk.push(Batch::new(&batch, outputs)?);
        if rows >= CHUNK_ROWS || bytes >= CHUNK_BYTES {
            stage.send(&chunk).await?;
            chunk.clear();
            (rows, bytes) = (0, 0);
        }
    }
    stage.send(&chunk).await?;
    Ok(stage.staged)
}

struct Stage<'a> {
    session: &'a mut Session,
    statements: &'a Statements,
    columns: Vec<String>,
    outputs: &'a [Output],
    refusals: Option<&'a dyn Refusals>,
    staged: Staged,
}

impl Stage<'_> {
    async fn send(&mut self, chunk: &[Batch]) -> Result<()> {
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        let (mut sent, mut oversize) = (0, Vec::new());
        if chunk.iter().all(|batch| batch.rows() == 0) {
            return Ok(());
        }
        let mut load = self
            .session
            .bulk_insert_with_options(STAGING, &columns, SqlBulkCopyOption::TableLock.into(), &[])
            .await?;
        for batch in chunk {
            for row in 0..batch.rows() {
                let (cells, too_long) = match self.refusals {
                    None if self.statements.letters => {
                        let number = i64::try_from(self.staged.rows).unwrap_or(i64::MAX - 1) + 1;
                        batch.numbered(row, self.outputs, number)?
                    }
                    None => batch.row(row, self.outputs)?,
                    Some(refusals) => number(batch, row, self.outputs, refusals, &mut self.staged)?,
                };
                self.staged.deletes += u64::from(batch.deletes(row));
                self.staged.rows += 1;
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
        if !oversize.is_empty() {
            let insert = self.statements.insert_staged();
            for cells in oversize {
                let values: Vec<ColumnData<'_>> = cells.into_iter().map(parameter).collect();
                let values: Vec<&dyn ToSql> = values.iter().map(|value| value as &dyn ToSql).collect();
                self.session.run(&insert, &values).await?;
            }
        }
        Ok(())
    }
}

/// The next row with its number; put aside when a value of it does not fit.
fn number<'a>(
    batch: &'a Batch,
    row: usize,
    outputs: &[Output],
    refusals: &dyn Refusals,
    staged: &mut Staged,
) -> Result<(TokenRow<'a>, bool)> {
    let number = i64::try_from(staged.rows).unwrap_or(i64::MAX - 1) + 1;
    match batch.numbered(row, outputs, number) {
        Err(error) if error.kind() == ErrorKind::Data => {
            let reason = error.to_string();
            refusals.note(&reason)?;
            staged.unfit.push((number, reason));
            Ok(batch.aside(row, outputs, number))
        }
        numbered => numbered,
    }
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
