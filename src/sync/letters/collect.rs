//! Gathers the rejected rows of a reading, from all its streams, until the commit that passes over them.
//!
//! Letters go to the store in pieces as they come: in memory stay the name and the mark of each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;

use super::super::contract::{Passed, Rejected};
use super::deliver::Line;
use super::letter::{self, Leg, Letter, Mark};
use super::limit::RejectLimit;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeTable;

/// A file aside holds about so many bytes of letters: few requests, little memory.
const FILE_BYTES: usize = 4 << 20;

/// Reasons that an error names.
const REASONS_NAMED: usize = 3;

/// What makes two letters one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// A row of a `merge` table: its key.
    Key,
    /// A row of a table that is always read whole: its values, and how many like it came before.
    Row,
    /// A row that is added once: its values, where its window begins, and how many like it came before there.
    /// So a window that is read again, after a rollback, brings the same letters.
    Arrival,
}

/// Where rejected rows go.
pub(in crate::sync) struct Collector {
    table: LakeTable,
    identity: Identity,
    /// The key's columns: the source's names, and the lake's.
    key: Vec<(String, String)>,
    /// Letters that were there before.
    open: BTreeMap<String, Mark>,
    /// Whether the reading is of the whole table, so that letters that do not come again are done.
    whole: bool,
    limit: Option<RejectLimit>,
    stream: String,
    /// Rows that came by.
    read: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Since the beginning.
    rejected: u64,
    reasons: BTreeMap<String, u64>,
    /// The position of the last commit that carried a note, or where the reading began.
    window: String,
    /// Since the last commit.
    letters: HashMap<String, Mark>,
    healed: Vec<String>,
    alike: HashMap<String, u64>,
    buffer: Vec<u8>,
    files: Vec<String>,
}

impl Collector {
    pub(super) fn new(
        table: LakeTable,
        identity: Identity,
        key: Vec<(String, String)>,
        open: BTreeMap<String, Mark>,
        whole: bool,
        limit: Option<RejectLimit>,
        stream: String,
    ) -> Self {
        let (read, held) = (AtomicU64::new(0), Mutex::default());
        Self { table, identity, key, open, whole, limit, stream, read, held }
    }

    /// Takes what came of a batch: keeps what is rejected, and the rows that go in are on their way. Of
    /// those, letters that are open are done.
    /// Returns how many are rejected.
    pub(in crate::sync) async fn take(&self, passed: &Passed) -> Result<u64> {
        let rejected = passed.rejected.as_ref();
        let rows = passed.rows.num_rows() + rejected.map_or(0, |rejected| rejected.rows.num_rows());
        self.read.fetch_add(rows as u64, Ordering::Relaxed);
        self.heal(&passed.rows)?;
        let Some(rejected) = rejected else { return Ok(0) };
        self.keep(rejected).await?;
        Ok(rejected.rows.num_rows() as u64)
    }

    async fn keep(&self, rejected: &Rejected) -> Result<()> {
        let payloads = letter::rows_as_json(&rejected.rows)?;
        let keys = self.keys(&rejected.rows, |(source, _)| source)?;
        let full = {
            let mut held = self.held.lock().expect("no panic while it is held");
            for (row, payload) in payloads.into_iter().enumerate() {
                let reason = rejected.reasons[row].clone();
                held.rejected += 1;
                *held.reasons.entry(reason.clone()).or_default() += 1;
                let key = keys.as_ref().map(|keys| keys[row].clone());
                let letter = self.name(&mut held, key.as_deref(), &payload);
                held.letters.insert(letter.clone(), letter::mark(&payload, &reason));
                held.write(&Line::Letter(Letter { letter, key, payload, reason }));
            }
            if let Some(limit @ RejectLimit::Rows(_)) = self.limit {
                self.check(limit, &held)?;
            }
            (held.buffer.len() >= FILE_BYTES).then(|| std::mem::take(&mut held.buffer))
        };
        if let Some(buffer) = full {
            let file = self.table.put_aside(buffer).await?;
            self.held.lock().expect("no panic while it is held").files.push(file);
        }
        Ok(())
    }

    /// Ends what was collected since the last commit: files to be named by a note, or `None` when the letters
    /// that are there say it all.
    pub(super) async fn close(&self) -> Result<Option<Vec<String>>> {
        let (buffer, mut files, keep) = {
            let mut held = self.held.lock().expect("no panic while it is held");
            if let Some(limit) = self.limit {
                self.check(limit, &held)?;
            }
            let mut gone: Vec<String> = std::mem::take(&mut held.healed);
            if self.whole {
                gone.extend(self.open.keys().cloned());
            }
            gone.retain(|letter| !held.letters.contains_key(letter));
            gone.sort_unstable();
            gone.dedup();
            let news = held.letters.iter().any(|(letter, mark)| self.open.get(letter) != Some(mark));
            let keep = news || !gone.is_empty();
            gone.into_iter().for_each(|letter| held.write(&Line::Gone(letter)));
            held.letters.clear();
            held.alike.clear();
            (std::mem::take(&mut held.buffer), std::mem::take(&mut held.files), keep)
        };
        if !keep {
            self.table.drop_aside(&files).await;
            return Ok(None);
        }
        if !buffer.is_empty() {
            files.push(self.table.put_aside(buffer).await?);
        }
        Ok(Some(files))
    }

    /// Where the table stands: what is rejected from here on is of another window.
    pub(super) fn stands_at(&self, table: &LakeTable) -> Result<()> {
        let position = table.position()?.map(|position| position.watermark);
        let window = position.map(|position| position.as_str().to_owned()).unwrap_or_default();
        self.held.lock().expect("no panic while it is held").window = window;
        Ok(())
    }

    fn check(&self, limit: RejectLimit, held: &Held) -> Result<()> {
        let read = self.read.load(Ordering::Relaxed);
        let mut reasons: Vec<_> = held.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let reasons = reasons.into_iter().take(REASONS_NAMED).map(|(reason, _)| reason.as_str());
        let exceeded = limit.exceeded(held.rejected, read, reasons);
        exceeded.map_or(Ok(()), |error| Err(error.with("stream", &self.stream)))
    }

    fn name(&self, held: &mut Held, key: Option<&str>, payload: &str) -> String {
        let leg = Leg::Extract.name();
        match (self.identity, key) {
            (Identity::Key, Some(key)) => letter::name(&[leg, key]),
            (identity, _) => {
                let alike = held.alike.entry(letter::name(&[payload])).or_default();
                *alike += 1;
                let window = if identity == Identity::Arrival { held.window.as_str() } else { "" };
                letter::name(&[leg, window, payload, &alike.to_string()])
            }
        }
    }

    /// Notes the open letters of rows that come through.
    fn heal(&self, rows: &RecordBatch) -> Result<()> {
        if self.whole || self.identity != Identity::Key || self.open.is_empty() || rows.num_rows() == 0 {
            return Ok(());
        }
        let keys = self.keys(rows, |(_, lake)| lake)?.unwrap_or_default();
        let names = keys.iter().map(|key| letter::name(&[Leg::Extract.name(), key]));
        let healed: Vec<String> = names.filter(|name| self.open.contains_key(name)).collect();
        self.held.lock().expect("no panic while it is held").healed.extend(healed);
        Ok(())
    }

    /// The keys of rows as JSON in the lake's names; `None` without a key.
    fn keys(
        &self,
        rows: &RecordBatch,
        named: impl Fn(&(String, String)) -> &String,
    ) -> Result<Option<Vec<String>>> {
        if self.key.is_empty() {
            return Ok(None);
        }
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for column in &self.key {
            let place = rows.schema_ref().index_of(named(column)).map_err(|_| {
                Error::new(ErrorKind::Internal, "a batch lacks a key column").with("column", named(column))
            })?;
            fields.push(rows.schema_ref().field(place).clone().with_name(&column.1));
            columns.push(rows.column(place).clone());
        }
        let keys = RecordBatch::try_new(Schema::new(fields).into(), columns)?;
        letter::rows_as_json(&keys).map(Some)
    }
}

impl Held {
    fn write(&mut self, line: &Line) {
        serde_json::to_writer(&mut self.buffer, line).expect("a letter is JSON");
        self.buffer.push(b'\n');
    }
}
