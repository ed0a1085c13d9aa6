//! Rows into the staging table: as a file that the client sends, or by INSERTs where the server takes none.
//!
//! The server makes warnings of errors where a file comes from the client, and leaves rows out whose key is
//! there: it cannot stop who is sending. So it is asked afterwards, and any warning ends the load.

use std::io;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, stream};
use mysql_async::prelude::Queryable;

use super::encode::{Batch, Format, Output};
use super::statements::Statements;
use crate::clients::mysql::{Session, integer};
use crate::connectors::sql::lock;
use crate::error::{Error, ErrorKind, Result};
use crate::target::Refusals;

/// Bytes of a packet: below what any server takes.
const PACKET: usize = 512 << 10;

/// The server's number for a key that is there already.
const DUPLICATE: i64 = 1062;

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
    outputs: Vec<Output>,
    refusals: Option<Arc<dyn Refusals>>,
    changes: SendableRecordBatchStream,
) -> Result<Staged> {
    let writer = Writer { outputs, numbered: statements.letters, refusals };
    for statement in statements.create_staging() {
        session.run(&statement).await.map_err(|error| match error.kind() {
            ErrorKind::Permission => error.hint("GRANT CREATE TEMPORARY TABLES ON <database>.* TO <user>"),
            _ => error,
        })?;
    }
    let rows = session.rows("SELECT @@GLOBAL.local_infile, @@SESSION.max_allowed_packet").await?;
    let takes_files = rows.first().and_then(|row| integer(row, 0)) == Some(1);
    let packet = rows.first().and_then(|row| integer(row, 1)).and_then(|bytes| usize::try_from(bytes).ok());
    if takes_files {
        send_file(session, statements, writer, changes).await
    } else {
        insert(session, statements, &writer, changes, packet.unwrap_or(PACKET).min(2 * PACKET) / 2).await
    }
}

/// How rows are written.
struct Writer {
    outputs: Vec<Output>,
    numbered: bool,
    refusals: Option<Arc<dyn Refusals>>,
}

impl Writer {
    /// Appends the next row, aside if it does not fit and may be refused.
    fn write(
        &self,
        batch: &Batch<'_>,
        row: usize,
        format: Format,
        staged: &mut Staged,
        (out, scratch): (&mut Vec<u8>, &mut Vec<u8>),
    ) -> Result<()> {
        let number = staged.rows + 1;
        staged.rows = number;
        staged.deletes += u64::from(batch.deletes(row));
        let written = batch.write(row, format, self.numbered.then_some(number), out, scratch);
        match (written, &self.refusals) {
            (Err(error), Some(refusals)) if error.kind() == ErrorKind::Data => {
                let reason = error.to_string();
                refusals.note(&reason)?;
                staged.unfit.push((i64::try_from(number).unwrap_or(i64::MAX), reason));
                batch.write_aside(row, format, number, out, scratch)
            }
            (written, _) => written,
        }
    }
}

/// What the sender of a file has done so far.
#[derive(Default)]
struct Sent {
    staged: Staged,
    failed: Option<Error>,
}

async fn send_file(
    session: &mut Session,
    statements: &Statements,
    writer: Writer,
    changes: SendableRecordBatchStream,
) -> Result<Staged> {
    let sent = Arc::new(Mutex::new(Sent::default()));
    let told = Arc::clone(&sent);
    let file = changes.flat_map(move |batch| {
        let packets =
            batch.map_err(Error::from).and_then(|batch| lines(&batch, &writer, &mut lock(&told).staged));
        let packets = match packets {
            Ok(packets) => packets.into_iter().map(Ok).collect(),
            Err(error) => {
                lock(&told).failed = Some(error);
                // Ends the file; what came before is never looked at.
                vec![Err(io::Error::other("the rows broke off"))]
            }
        };
        stream::iter(packets)
    });
    // The client hands the file over once, and asks for more than it needs.
    let file = Mutex::new(Some(file.boxed()));
    session.set_infile_handler(async move {
        lock(&file)
            .take()
            .ok_or_else(|| mysql_async::Error::from(io::Error::other("the file was sent already")))
    });
    let outcome = session.query_drop(statements.load_staging()).await;
    let sent = std::mem::take(&mut *lock(&sent));
    if let Some(error) = sent.failed {
        return Err(error);
    }
    outcome?;
    let (taken, warnings) = (session.affected_rows(), session.get_warnings());
    if warnings > 0 || taken != sent.staged.rows {
        return Err(unexpected(session, taken, sent.staged.rows).await);
    }
    Ok(sent.staged)
}

/// A batch as lines, cut into packets.
fn lines(batch: &RecordBatch, writer: &Writer, staged: &mut Staged) -> Result<Vec<Bytes>> {
    let batch = Batch::new(batch, &writer.outputs)?;
    let (mut packets, mut out, mut scratch) = (Vec::new(), Vec::with_capacity(PACKET), Vec::new());
    for row in 0..batch.rows() {
        writer.write(&batch, row, Format::Line, staged, (&mut out, &mut scratch))?;
        if out.len() >= PACKET {
            packets.append(&mut cut(std::mem::replace(&mut out, Vec::with_capacity(PACKET))));
        }
    }
    packets.append(&mut cut(out));
    Ok(packets)
}

/// A packet may end anywhere in a line.
fn cut(bytes: Vec<u8>) -> Vec<Bytes> {
    let mut bytes = Bytes::from(bytes);
    let mut packets = Vec::new();
    while !bytes.is_empty() {
        packets.push(bytes.split_to(bytes.len().min(PACKET)));
    }
    packets
}

/// Why the server did not take the rows as they were sent.
async fn unexpected(session: &mut Session, taken: u64, sent: u64) -> Error {
    let warnings = session.rows("SHOW WARNINGS LIMIT 1").await.unwrap_or_default();
    let number = warnings.first().and_then(|row| integer(row, 1));
    if number == Some(DUPLICATE) {
        return same_key();
    }
    let message = match number {
        Some(number) => format!("the server would have changed a value on its way (number: {number})"),
        None => format!("the server took {taken} rows of {sent}"),
    };
    Error::new(ErrorKind::Data, message)
        .hint("compare the types of the target's columns with those of the stream")
}

fn same_key() -> Error {
    Error::new(ErrorKind::Data, "two keys of the stream are one to the target's key column").hint(
        "give the column a collation that tells them apart: `utf8mb4_nopad_bin`, in MySQL `utf8mb4_0900_bin`",
    )
}

async fn insert(
    session: &mut Session,
    statements: &Statements,
    writer: &Writer,
    mut changes: SendableRecordBatchStream,
    limit: usize,
) -> Result<Staged> {
    let head = statements.insert_staging();
    let (mut staged, mut scratch) = (Staged::default(), Vec::new());
    let mut statement = head.clone().into_bytes();
    while let Some(batch) = changes.next().await {
        let batch = batch?;
        let batch = Batch::new(&batch, &writer.outputs)?;
        for row in 0..batch.rows() {
            if statement.len() > head.len() {
                statement.push(b',');
            }
            writer.write(&batch, row, Format::Values, &mut staged, (&mut statement, &mut scratch))?;
            if statement.len() >= limit {
                flush(session, &mut statement, &head).await?;
            }
        }
    }
    flush(session, &mut statement, &head).await?;
    Ok(staged)
}

async fn flush(session: &mut Session, statement: &mut Vec<u8>, head: &str) -> Result<()> {
    if statement.len() > head.len() {
        let full = std::mem::replace(statement, head.to_owned().into_bytes());
        session.query_drop(full).await.map_err(Error::from).map_err(|error| {
            match crate::clients::mysql::number(&error) {
                Some(number) if i64::from(number) == DUPLICATE => same_key(),
                _ => error,
            }
        })?;
    }
    Ok(())
}
