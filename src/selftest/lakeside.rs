//! What the lake shows: every snapshot of every table, held against the states that the source committed.
//!
//! ```text
//! source   s1 ── s2 ── s3 ── s4 ── s5        (committed states, kept by the model)
//!           ╲           ╲           ╲
//! lake       A ───────── B ───────── C       each is one of them, none goes back
//! ```
//!
//! A table that is read whole shows exactly one state. One that follows a cursor shows, of the state `s`
//! that its pass read, all rows up to some cursor value, and beyond it what the snapshot before showed:
//! rows that wait for the horizon. There must be such an `s`, and such a value.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use futures::StreamExt;

use super::database::kind_of;
use super::model::{How, Key, STAMP, State, Table, key_of};
use super::values::{Value, rank};
use crate::delta::SnapshotId;
use crate::error::Result;
use crate::lake::{Lake, LakeSettings, LakeTable, SnapshotInfo};
use crate::memory::{self, Budget};
use crate::merge;
use crate::table::TableId;

/// Marks parts of first reads.
const UNFINISHED: &str = "frazil.unfinished";
/// How many rows a finding names.
const SHOWN: usize = 4;

/// The rows of a table, or of a snapshot of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rows {
    columns: Vec<String>,
    rows: BTreeMap<Key, Vec<Value>>,
    /// Keys that are there more than once.
    doubled: Vec<Key>,
}

impl Rows {
    pub(super) fn new(columns: Vec<String>, rows: Vec<Vec<Value>>, key: &[usize]) -> Self {
        let mut found = Self { columns, ..Self::default() };
        for row in rows {
            let parts: Vec<Value> = key.iter().map(|at| row[*at].clone()).collect();
            let key = key_of(&parts, parts.len());
            if found.rows.insert(key.clone(), row).is_some() {
                found.doubled.push(key);
            }
        }
        found
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Where the columns of a state are in these rows.
    fn places(&self, state: &State) -> Option<Vec<usize>> {
        let place = |name: &str| self.columns.iter().position(|column| column == name);
        state.columns.iter().map(|column| place(&column.name)).collect()
    }

    fn same(&self, places: &[usize], key: &Key, row: &[Value]) -> bool {
        self.rows.get(key).is_some_and(|found| places.iter().zip(row).all(|(at, value)| found[*at] == *value))
    }

    /// What differs from a state: nothing, if these are its rows.
    pub(super) fn differences(&self, state: &State) -> Vec<String> {
        let mut wrong: Vec<String> =
            self.doubled.iter().map(|key| format!("{} is there twice", shown(key))).collect();
        let Some(places) = self.places(state) else {
            let names: Vec<&str> = state.columns.iter().map(|column| column.name.as_str()).collect();
            wrong.push(format!("the columns are {:?}, not {names:?}", self.columns));
            return wrong;
        };
        for (key, row) in &state.rows {
            match self.rows.get(key) {
                None => wrong.push(format!("{} is missing", shown(key))),
                Some(found) if !self.same(&places, key, row) => {
                    let (at, value) = places
                        .iter()
                        .zip(row.iter())
                        .find(|(at, v)| found[**at] != **v)
                        .expect("they differ");
                    let column = &self.columns[*at];
                    wrong.push(format!("{}: `{column}` is {:?}, not {value:?}", shown(key), found[*at]));
                }
                Some(_) => {}
            }
        }
        let surplus = self.rows.keys().filter(|key| !state.rows.contains_key(*key));
        wrong.extend(surplus.map(|key| format!("{} is too many", shown(key))));
        wrong
    }

    /// Whether these rows, that came after `before`, are what a pass that read `state` by a cursor shows.
    fn follow(&self, before: &Self, state: &State, cursor: usize) -> bool {
        let (Some(places), true) = (self.places(state), self.doubled.is_empty()) else { return false };
        let mut newest_shown = i64::MIN;
        let mut oldest_waiting = i64::MAX;
        for (key, row) in &state.rows {
            let rank = row[cursor].as_deref().map_or(i64::MIN, rank);
            if !self.same(&places, key, row) {
                if !self.unchanged(before, key) {
                    return false;
                }
                oldest_waiting = oldest_waiting.min(rank);
            } else if !self.unchanged(before, key) {
                newest_shown = newest_shown.max(rank);
            }
        }
        let ghosts = self.rows.keys().any(|key| !state.rows.contains_key(key));
        !ghosts && newest_shown < oldest_waiting
    }

    /// Whether a row is what it was: columns may have come or gone around it.
    fn unchanged(&self, before: &Self, key: &Key) -> bool {
        let (Some(now), Some(then)) = (self.rows.get(key), before.rows.get(key)) else {
            return self.rows.contains_key(key) == before.rows.contains_key(key);
        };
        let of = |name: &String| before.columns.iter().position(|column| column == name);
        self.columns.iter().zip(now).all(|(name, value)| of(name).is_none_or(|at| then[at] == *value))
    }
}

/// A key as a person reads it.
fn shown(key: &Key) -> String {
    format!("row ({})", key.replace('\u{1f}', ", ")).chars().take(80).collect()
}

/// A table of the lake, as far as it was looked at.
#[derive(Default)]
pub(super) struct Followed {
    last: Option<SnapshotId>,
    rows: Rows,
    /// The state that the last snapshot shows: none goes back behind it.
    state: u64,
}

/// What was found in a table's new snapshots.
#[derive(Default)]
pub(super) struct Looked {
    pub(super) snapshots: u64,
    pub(super) rows: u64,
    pub(super) wrong: Vec<String>,
}

impl Followed {
    /// Whether there is a table, as far as was seen.
    pub(super) fn is_there(&self) -> bool {
        self.last.is_some()
    }

    /// The table was dropped: its next snapshot is the first of another one.
    pub(super) fn start_anew(&mut self) {
        (self.last, self.rows) = (None, Rows::default());
    }

    /// Looks at all snapshots since the last time.
    pub(super) async fn look(&mut self, lake: &Lakeside, id: &TableId, table: &mut Table) -> Result<Looked> {
        let mut looked = Looked::default();
        let Some(found) = lake.lake.table(id).await? else { return Ok(looked) };
        let Some((new, gap)) = self.since(&found) else {
            looked.wrong.push(format!("{id}: the snapshot that was current is none of its past any more"));
            return Ok(looked);
        };
        for snapshot in new {
            // A part of a first read that was not shown before its end.
            if snapshot.summary.contains_key(UNFINISHED) {
                self.last = Some(snapshot.id);
                continue;
            }
            let rows = lake.read(&found, Some(snapshot.id), table).await?;
            looked.snapshots += 1;
            looked.rows += rows.len() as u64;
            if gap && self.last != snapshot.parent {
                // The one before has expired: what was waiting then is not known.
                self.rows = rows.clone();
            }
            if let Some(wrong) = self.judge(&rows, &snapshot, table) {
                looked
                    .wrong
                    .push(format!("{id}, snapshot {} ({}): {wrong}", snapshot.id, snapshot.operation));
            }
            self.rows = rows;
            self.last = Some(snapshot.id);
        }
        table.forget_before(self.state);
        Ok(looked)
    }

    /// The snapshots that came after the last one looked at, the oldest first, and whether some between
    /// have expired; `None` where they do not come after it.
    fn since(&self, table: &LakeTable) -> Option<(Vec<SnapshotInfo>, bool)> {
        let all = table.snapshots();
        let last_is_there = self.last.is_some_and(|last| all.iter().any(|snapshot| snapshot.id == last));
        let by_id: BTreeMap<_, _> = all.into_iter().map(|snapshot| (snapshot.id.0, snapshot)).collect();
        let mut new = Vec::new();
        let mut at = table.current();
        while let Some(id) = at.filter(|id| Some(*id) != self.last) {
            let Some(snapshot) = by_id.get(&id.0) else { break };
            at = snapshot.parent;
            new.push(snapshot.clone());
        }
        new.reverse();
        // An expired one is gone; one that is there must be an ancestor.
        let gap = at != self.last && self.last.is_some();
        (!gap || !last_is_there).then_some((new, gap))
    }

    /// What is wrong with a snapshot, if anything is.
    fn judge(&mut self, rows: &Rows, snapshot: &SnapshotInfo, table: &Table) -> Option<String> {
        // Rewritten files hold the rows that they held.
        if snapshot.operation == "replace" && snapshot.parent == self.last {
            let moved =
                rows.rows.keys().chain(self.rows.rows.keys()).find(|key| !rows.unchanged(&self.rows, key));
            return moved.map(|key| format!("maintenance changed {}", shown(key)));
        }
        let cursor = match table.spec.how {
            How::Whole => None,
            How::Stamped { .. } => Some(STAMP),
            How::Added => Some("id"),
        };
        let mut nearest: Option<(u64, Vec<String>)> = None;
        for (number, state) in table.since(self.state) {
            let differences = rows.differences(state);
            let holds = differences.is_empty()
                || cursor
                    .and_then(|cursor| state.index(cursor))
                    .is_some_and(|cursor| rows.follow(&self.rows, state, cursor));
            if holds {
                self.state = number;
                return None;
            }
            if nearest.as_ref().is_none_or(|(_, known)| differences.len() <= known.len()) {
                nearest = Some((number, differences));
            }
        }
        let (number, differences) = nearest?;
        Some(format!(
            "it is none of the states {} to {} that the source committed since the snapshot before; from state {number} it differs in {}: {}",
            self.state,
            table.states(),
            differences.len(),
            differences[..differences.len().min(SHOWN)].join("; ")
        ))
    }
}

/// The lake, and the engine by which it is read.
pub(super) struct Lakeside {
    pub(super) lake: Lake,
    session: SessionContext,
}

impl Lakeside {
    pub(super) async fn open(settings: &LakeSettings) -> Result<Self> {
        let lake = Lake::open(settings).await?;
        let runtime = merge::runtime(Budget::new(memory::DEFAULT, 1)?, lake.stores())?;
        Ok(Self { session: SessionContext::new_with_config_rt(merge::config(), runtime), lake })
    }

    /// The keys of a table's rows that were put aside, as JSON.
    pub(super) async fn letters(&self, id: &TableId) -> Result<Vec<String>> {
        let letters = TableId { schema: id.schema.clone(), name: format!("{}__dead_letters", id.name) };
        let Some(table) = self.lake.table(&letters).await? else { return Ok(Vec::new()) };
        let keys = self.session.read_table(table.provider(None).await?)?.select_columns(&["key"])?;
        let mut found = Vec::new();
        for batch in keys.collect().await? {
            let keys = batch.column(0).as_string::<i32>();
            found.extend(keys.iter().map(|key| key.unwrap_or_default().to_owned()));
        }
        found.sort();
        Ok(found)
    }

    /// The rows of a table, now or at a snapshot.
    pub(super) async fn read(
        &self,
        found: &LakeTable,
        at: Option<SnapshotId>,
        table: &Table,
    ) -> Result<Rows> {
        let mut batches = self.session.read_table(found.provider(at).await?)?.execute_stream().await?;
        let schema = batches.schema();
        let key = &table.spec.columns[..table.spec.key];
        let key: Vec<usize> = key.iter().filter_map(|(name, _)| schema.index_of(name).ok()).collect();
        let options = FormatOptions::default()
            .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
            .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f"));
        let mut rows = Vec::new();
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let columns: Vec<_> = batch
                .columns()
                .iter()
                .map(|column| {
                    Ok((column, kind_of(column.data_type()), ArrayFormatter::try_new(column, &options)?))
                })
                .collect::<Result<_>>()?;
            for row in 0..batch.num_rows() {
                let value = |(column, kind, text): &(
                    &arrow::array::ArrayRef,
                    super::values::Kind,
                    ArrayFormatter<'_>,
                )| {
                    (!column.is_null(row)).then(|| kind.canonical(&text.value(row).to_string()))
                };
                rows.push(columns.iter().map(value).collect());
            }
        }
        let names = schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(Rows::new(names, rows, &key))
    }
}
