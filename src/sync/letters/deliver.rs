//! Delivers a note: the letters that a commit of the stream's table handed on become rows of their own table.
//!
//! Whoever finds a note delivers it, and may do so beside others: the table of letters has as its position
//! the number of the last note that it took, so a second delivery of the same note finds it moved. Numbers
//! grow with the commits that carry notes.

use arrow::array::RecordBatch;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::letter::{self, Leg, Letter, letters_of};
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Change, Effect, Lake, LakeTable};
use crate::memory::Budget;

/// Others may deliver at the same time; each time one of us gets ahead, so this is far more than enough.
const TRIES: usize = 20;

/// What a commit says of the letters that belong to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::sync) struct Note {
    /// One more than the note before.
    pub(super) number: u64,
    pub(super) leg: Leg,
    pub(super) run: Uuid,
    /// The window of the source in which the rows were.
    pub(super) from: Option<String>,
    pub(super) to: String,
    pub(super) at: DateTime<Utc>,
    /// Lines of JSON, aside.
    pub(super) files: Vec<String>,
}

impl Note {
    /// The newest note of a stream's table.
    pub(super) fn of(table: &LakeTable) -> Result<Option<Self>> {
        let read = |text| {
            serde_json::from_str(text).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "the note of dead letters cannot be read")
                    .with("table", table.id())
                    .because(error)
            })
        };
        table.outbox().map(read).transpose()
    }

    /// As a commit carries it.
    pub(in crate::sync) fn text(&self) -> String {
        serde_json::to_string(self).expect("a note is JSON")
    }

    /// Takes back what no commit will name.
    pub(in crate::sync) async fn discard(&self, table: &LakeTable) {
        table.drop_aside(&self.files).await;
    }
}

/// A line of a file aside.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// A row that was rejected.
    Letter(Letter),
    /// A letter that is done, by name.
    Gone(String),
}

/// Sees to it that the note of a stream's table is delivered. Returns the table of letters; `None` when
/// the stream's table has no note.
pub(super) async fn deliver(lake: &Lake, table: &LakeTable, budget: Budget) -> Result<Option<LakeTable>> {
    let mut table = table.clone();
    let mut overtaken = None;
    for _ in 0..TRIES {
        let Some(note) = Note::of(&table)? else { return Ok(None) };
        let mut letters = match letters_table(lake, &table).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                overtaken = Some(error);
                continue;
            }
            found => found?,
        };
        let position = letters.position()?.map(|position| position.watermark);
        if position.as_ref().is_some_and(|position| covers(position, &table, note.number)) {
            return Ok(Some(letters));
        }
        match take(&mut letters, position, &table, &note, budget).await {
            Ok(()) => {
                table.drop_aside(&note.files).await;
                return Ok(Some(letters));
            }
            Err(error) if error.kind() == ErrorKind::Conflict => overtaken = Some(error),
            Err(error) => return Err(error.with("stream table", table.id())),
        }
        table.reload().await?;
    }
    Err(overtaken.expect("it was tried").with("stream table", table.id()))
}

async fn letters_table(lake: &Lake, table: &LakeTable) -> Result<LakeTable> {
    let id = letters_of(table.id());
    match lake.table(&id).await? {
        Some(letters) => Ok(letters),
        None => lake.create(letter::spec(id)).await,
    }
}

/// Commits a note's lines to the table of letters, if that still is where it was.
async fn take(
    letters: &mut LakeTable,
    position: Option<Watermark>,
    table: &LakeTable,
    note: &Note,
    budget: Budget,
) -> Result<()> {
    let mut writer = letters.writer(budget)?;
    let mut gone = letters.key_writer(budget)?;
    for file in &note.files {
        let bytes = table.read_aside(file).await?.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "the letters of a note are gone: another runner delivered them")
                .with("file", file)
        })?;
        let (rows, names) = rows(&bytes, note).map_err(|error| error.with("file", file))?;
        writer.write(&rows).await?;
        gone.write(&names).await?;
    }
    let files = writer.finish().await?;
    let change = Change {
        files,
        effect: Effect::Log(gone.finish().await?),
        from: position,
        to: Watermark::new(format!("{}/{}", table.uuid(), note.number)),
        summary: [("frazil.run".to_owned(), note.run.to_string())].into(),
    };
    letters.commit(change, budget).await.map(drop)
}

/// Commits letters that no note carries, and takes others away; on top of whatever is delivered meanwhile.
pub(super) async fn amend(
    lake: &Lake,
    table: &LakeTable,
    letters: &[Letter],
    gone: &[String],
    note: &Note,
    budget: Budget,
) -> Result<()> {
    let mut overtaken = None;
    for _ in 0..TRIES {
        let outcome = async {
            let mut there = letters_table(lake, table).await?;
            let position = there.position()?.map(|position| position.watermark);
            let mut writer = there.writer(budget)?;
            writer.write(&letter::batch(letters, note)?).await?;
            let mut keys = there.key_writer(budget)?;
            keys.write(&letter::names(gone)?).await?;
            let change = Change {
                files: writer.finish().await?,
                effect: Effect::Log(keys.finish().await?),
                from: position.clone(),
                to: position.unwrap_or_else(|| Watermark::new(format!("{}/0", table.uuid()))),
                summary: [("frazil.run".to_owned(), note.run.to_string())].into(),
            };
            there.commit(change, budget).await
        };
        match outcome.await {
            Err(error) if error.kind() == ErrorKind::Conflict => overtaken = Some(error),
            outcome => return outcome.map(drop),
        }
    }
    Err(overtaken.expect("it was tried").with("stream table", table.id()))
}

/// Takes letters away that somebody gives up.
pub(super) async fn give_up(
    lake: &Lake,
    table: &LakeTable,
    gone: &[String],
    run: Uuid,
    budget: Budget,
) -> Result<()> {
    let (number, at) = (0, Utc::now());
    let note = Note { number, leg: Leg::Load, run, from: None, to: String::new(), at, files: Vec::new() };
    amend(lake, table, &[], gone, &note, budget).await
}

/// What a file aside says, as rows of the table of letters and as names of those that go.
fn rows(bytes: &[u8], note: &Note) -> Result<(RecordBatch, RecordBatch)> {
    let (mut letters, mut gone) = (Vec::new(), Vec::new());
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = serde_json::from_slice(line).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "a file of dead letters cannot be read").because(error)
        })?;
        match line {
            Line::Letter(letter) => letters.push(letter),
            Line::Gone(letter) => gone.push(letter),
        }
    }
    Ok((letter::batch(&letters, note)?, letter::names(&gone)?))
}

/// Whether a position of the table of letters is behind a note. A stream's table that was dropped and made
/// anew counts from one again.
fn covers(position: &Watermark, table: &LakeTable, number: u64) -> bool {
    let taken = position.as_str().split_once('/');
    taken.is_some_and(|(uuid, taken)| {
        uuid == table.uuid().to_string() && taken.parse::<u64>().is_ok_and(|taken| taken >= number)
    })
}
