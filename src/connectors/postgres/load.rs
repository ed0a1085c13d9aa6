//! One load: a change between two snapshots, in one transaction.
//!
//! ```text
//! claim control row ──▶ table empty, all types direct ──▶ COPY into the table ──▶ add the key ──┐
//!                  └──▶ else: COPY into staging ──▶ DELETE by key ──▶ upsert by key ────────────┴▶ COMMIT
//! ```
//!
//! Rows are pulled from the stream batch by batch and leave in chunks; nothing is collected. A
//! replacement is loaded as the difference to what is there: readers see the old rows until the
//! commit and the new ones after it, never none, and views, grants and foreign keys stay as they are.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::{SinkExt, StreamExt};
use tokio_postgres::{Client, CopyInSink};

use super::catalog::{self, Relation};
use super::control;
use super::encode::{CHUNK, HEADER, Operations, Output, Rows, Staged, TRAILER, Wire};
use super::prepare::{self, is_empty};
use super::refused::Part;
use super::statements::{Among, Extra, Statements};
use crate::clients::postgres::translate;
use crate::connectors::sql::{
    Hears, check_changes, check_changes_with_base, check_changes_with_letters, check_key, endings,
};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::table::{HAS_BASE, KEY_TEXT, TableId, base_column};
use crate::target::{LETTER_COLUMN, Merge, MergeStats, Refusals, Strategy, TURN};

/// The planner is led to look rows up by key while a change is below this part of the table; above, it
/// pays to read the table once. Measured: see `benches/README.md`.
const LOOKUP_BELOW: u64 = 5;

/// How long to wait for a lock on the table that somebody else holds.
const PATIENCE: &str = "60s";

/// Building an index sorts in memory up to this size; the server's default is made for old machines.
const INDEX_MEMORY: &str = "256MB";

/// Staged rows from which the planner is told about them: below, its guess does no harm.
pub(super) const ANALYZE_FROM: u64 = 1_000;

/// Runs the transaction up to, and without, its commit.
pub(super) async fn run(client: &Client, id: &TableId, merge: Merge, hears: Hears) -> Result<MergeStats> {
    let Hears { refusals, conflicts } = hears;
    check_key(id, &merge)?;
    // Whatever the server's default is: a claim that has to wait must see what the other runner did.
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await?;
    if let Some(turn) = merge.turn {
        control::claim(client, TURN, id, turn.from, turn.to).await?;
    }
    control::claim(client, &merge.stream, id, merge.from, merge.to).await?;
    client.batch_execute(&format!("SET LOCAL lock_timeout = '{PATIENCE}'")).await?;

    let relation = catalog::relation(client, id).await?.ok_or_else(|| {
        Error::new(ErrorKind::Config, "the target table does not exist any more").with("table", id)
    })?;
    let extra = match merge.strategy {
        Strategy::Merge if conflicts.is_some() => Extra::Base,
        _ if refusals.is_some() => Extra::Letters,
        _ => Extra::Nothing,
    };
    let (outputs, statements) = columns(id, &merge, &relation, extra)?;
    let key_is_there = merge.table.key.is_empty() || relation.is_unique_by(&merge.table.stored_key());
    let fresh = is_empty(client, id).await?;
    let (stream, schema) = (merge.stream.clone(), merge.table.schema.clone());
    let mut load = Load { client, id, merge, relation, outputs, statements, refusals, refused: Vec::new() };
    let stats = match (load.merge.strategy, &conflicts) {
        (Strategy::Merge, Some(conflicts)) => {
            load.change_beside(conflicts.as_ref(), fresh, key_is_there).await?
        }
        // Versions have columns of their own, which no copy fills.
        (Strategy::Versions { .. }, _) => load.change(key_is_there).await?,
        _ if fresh => load.fill(key_is_there).await?,
        _ => load.change(key_is_there).await?,
    };
    load.keep_refused().await?;
    if let Some(conflicts) = &conflicts {
        conflicts.keep().await?;
    }

    faults::point(faults::IN_LOAD_TRANSACTION)?;
    control::note(client, &stream, id, stats.staged, &schema).await?;
    Ok(stats)
}

pub(super) struct Load<'a> {
    pub(super) client: &'a Client,
    pub(super) id: &'a TableId,
    pub(super) merge: Merge,
    relation: Relation,
    outputs: Vec<Output>,
    pub(super) statements: Statements,
    /// Where refused rows go; without it the first one ends the load.
    pub(super) refusals: Option<Arc<dyn Refusals>>,
    /// The numbers of staged rows that were refused, and why.
    pub(super) refused: Vec<(i64, String)>,
}

impl Load<'_> {
    /// Into a table without rows: nothing to look up, and the key comes last.
    async fn fill(&mut self, key_is_there: bool) -> Result<MergeStats> {
        let stats = self.add().await?;
        self.add_key(key_is_there).await?;
        Ok(stats)
    }

    pub(super) async fn add_key(&mut self, is_there: bool) -> Result<()> {
        if !is_there {
            self.client.batch_execute(&format!("SET LOCAL maintenance_work_mem = '{INDEX_MEMORY}'")).await?;
            let key = self.merge.table.stored_key();
            self.execute(&prepare::key_statement(self.id, &key, &self.relation)).await?;
        }
        Ok(())
    }

    /// Ends the versions of rows that go or change, and begins those that are new.
    async fn versions(&mut self, at: DateTime<Utc>, whole: bool, key_is_there: bool) -> Result<MergeStats> {
        let mut stats = MergeStats { staged: self.stage().await?, ..MergeStats::default() };
        self.lead_planner(stats.staged).await?;
        for which in endings(self.statements.deletes, whole) {
            for statement in self.statements.end_versions(at, which).into_iter().flatten() {
                let ended = self.execute(&statement).await?;
                stats.deleted += if which.is_delete() { ended } else { 0 };
            }
        }
        stats.upserted = self.execute(&self.statements.begin_versions(at)).await?;
        self.add_key(key_is_there).await?;
        Ok(stats)
    }

    /// Into a table with rows.
    async fn change(&mut self, key_is_there: bool) -> Result<MergeStats> {
        let mut stats = MergeStats::default();
        match self.merge.strategy {
            Strategy::Append => stats = self.add().await?,
            Strategy::Replace => {
                stats.staged = self.stage().await?;
                self.client.batch_execute(&self.statements.analyze_staging()).await?;
                stats.deleted = self.execute(&self.statements.delete_others()).await?;
                let keyless = self.merge.table.key.is_empty();
                let part = if keyless { Part::Insert } else { Part::Upsert };
                stats.upserted = self.bring(part, stats.staged).await?;
            }
            Strategy::Merge => {
                stats.staged = self.stage().await?;
                self.lead_planner(stats.staged).await?;
                stats.deleted = self.bring(Part::Delete, stats.staged).await?;
                stats.upserted = self.bring(Part::Upsert, stats.staged).await?;
            }
            Strategy::Versions { at, whole } => return self.versions(at, whole, key_is_there).await,
        }
        Ok(stats)
    }

    /// Adds every row, straight into the table where all types travel as they are.
    async fn add(&mut self) -> Result<MergeStats> {
        let mut stats = MergeStats::default();
        let direct = self.statements.columns.iter().all(|column| column.carried.staged == Staged::Same);
        if direct && self.refusals.is_none() {
            let copy = self.statements.copy_into_table();
            (stats.staged, stats.upserted) = self.copy(&copy, Operations::UpsertsOnly).await?;
        } else {
            stats.staged = self.stage().await?;
            stats.upserted = self.bring(Part::Insert, stats.staged).await?;
        }
        Ok(stats)
    }

    pub(super) async fn stage(&mut self) -> Result<u64> {
        self.client.batch_execute(&self.statements.create_staging()).await.map_err(|error| {
            Error::from(error).hint(
                "the user needs the right to make temporary tables: `GRANT TEMPORARY ON DATABASE … TO …`",
            )
        })?;
        let copy = self.statements.copy_into_staging();
        Ok(self.copy(&copy, Operations::Written).await?.0)
    }

    pub(super) async fn lead_planner(&mut self, staged: u64) -> Result<()> {
        if staged >= ANALYZE_FROM {
            self.client.batch_execute(&self.statements.analyze_staging()).await?;
        }
        if self.relation.rows.is_some_and(|rows| staged < rows / LOOKUP_BELOW) {
            self.client.batch_execute("SET LOCAL enable_hashjoin = off").await?;
        }
        Ok(())
    }

    /// Sends all rows; returns how many came in and how many were written.
    async fn copy(&mut self, statement: &str, operations: Operations) -> Result<(u64, u64)> {
        let sink = self.client.copy_in::<_, Bytes>(statement).await?;
        let mut sink = std::pin::pin!(sink);
        let mut buffer = BytesMut::with_capacity(2 * CHUNK);
        buffer.extend_from_slice(HEADER);
        let (mut seen, mut written) = (0, 0);
        while let Some(batch) = self.merge.changes.next().await {
            let batch = batch?;
            seen += batch.num_rows() as u64;
            let mut rows = Rows::new(&batch, &self.outputs, operations)?;
            loop {
                let more = rows.fill(&mut buffer).map_err(|error| error.with("table", self.id))?;
                if buffer.len() >= CHUNK {
                    let sent = send(&mut sink, buffer.split().freeze()).await;
                    sent.map_err(|error| self.explain(error.as_ref()))?;
                    buffer.reserve(2 * CHUNK);
                }
                if !more {
                    break;
                }
            }
            written += rows.written;
        }
        buffer.extend_from_slice(TRAILER);
        sink.as_mut().feed(buffer.freeze()).await.ok(); // `finish` tells what is wrong
        let copied = sink.as_mut().finish().await.map_err(|error| self.explain(Some(&error)))?;
        if copied != written {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the server took {copied} rows of {written}"),
            )
            .with("table", self.id));
        }
        Ok((seen, written))
    }

    pub(super) async fn execute(&mut self, statement: &str) -> Result<u64> {
        tracing::debug!(table = %self.id, statement, "changes a target table");
        self.client.execute(statement, &[]).await.map_err(|error| self.explain(Some(&error)))
    }

    /// Our words for the server's, with the column where it can be told.
    pub(super) fn explain(&self, error: Option<&tokio_postgres::Error>) -> Error {
        let Some(error) = error else {
            return Error::new(ErrorKind::Internal, "the server ended the copy early").with("table", self.id);
        };
        let mut ours = translate(error);
        if let Some(db) = error.as_db_error() {
            let columns = &self.statements.columns;
            if let Some(place) = db.where_().and_then(column_of_copy) {
                // Staging columns are named by position.
                let staged =
                    place.strip_prefix('c').and_then(|index| columns.get(index.parse::<usize>().ok()?));
                let direct = columns.iter().find(|column| column.name == place);
                if let Some(column) = direct.or(staged) {
                    ours = ours.with("column", &column.name);
                }
            } else if db.code().code().starts_with("22") {
                let cast = columns.iter().filter(|column| column.carried.staged != Staged::Same);
                let names: Vec<_> = cast.map(|column| column.name.as_str()).collect();
                if !names.is_empty() {
                    ours = ours.with("column", names.join(" or "));
                }
            }
        }
        ours.with("table", self.id)
    }
}

/// The column in `COPY orders, line 7, column price`. In a binary copy no value follows it.
fn column_of_copy(place: &str) -> Option<&str> {
    let line = place.lines().find(|line| line.starts_with("COPY "))?;
    let (_, column) = line.split_once(", column ")?;
    Some(column.split(':').next().unwrap_or(column))
}

/// Hands a chunk to the connection. When the server has refused the rows, the reason comes with `finish`.
async fn send(
    sink: &mut std::pin::Pin<&mut CopyInSink<Bytes>>,
    chunk: Bytes,
) -> Result<(), Option<tokio_postgres::Error>> {
    match sink.as_mut().feed(chunk).await {
        Ok(()) => Ok(()),
        Err(_) => Err(sink.as_mut().finish().await.err()),
    }
}

fn columns(
    id: &TableId,
    merge: &Merge,
    relation: &Relation,
    extra: Extra,
) -> Result<(Vec<Output>, Statements)> {
    match extra {
        Extra::Letters => check_changes_with_letters(id, merge)?,
        Extra::Base => check_changes_with_base(id, merge)?,
        Extra::Nothing => check_changes(id, merge)?,
    }
    let columns = prepare::columns(&merge.table, relation).map_err(|error| error.with("table", id))?;
    let width = merge.table.schema.fields().len();
    let output = |(index, column): &(usize, super::statements::Column)| Output {
        index: *index,
        name: column.name.clone(),
        wire: column.carried.wire.clone(),
        key: column.key,
    };
    let mut outputs: Vec<Output> = columns.iter().map(output).collect();
    let added = |index, name: &str, wire| Output { index, name: name.to_owned(), wire, key: false };
    match extra {
        Extra::Nothing => {}
        Extra::Letters => outputs.push(added(width, LETTER_COLUMN, Wire::Text)),
        Extra::Base => {
            let older: Vec<Output> = outputs
                .iter()
                .map(|own| added(width + own.index, &base_column(&own.name), own.wire.clone()))
                .collect();
            outputs.extend(older);
            outputs.push(added(2 * width, KEY_TEXT, Wire::Text));
            outputs.push(added(2 * width + 1, HAS_BASE, Wire::Int4));
        }
    }
    let statements = Statements {
        table: id.clone(),
        columns: columns.into_iter().map(|(_, column)| column).collect(),
        key: merge.table.key.clone(),
        deletes: merge.table.deletes,
        overriding: relation.columns.iter().any(|column| column.identity_always),
        extra,
        among: Among::All,
    };
    Ok((outputs, statements))
}
