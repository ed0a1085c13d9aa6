//! A table of a target that several streams feed.
//!
//! ```text
//! lake: crm.customers  at what the target shows ─┐
//!                                                ├─▶ keys that changed ─▶ rows by source ─▶ target, with …
//! lake: shop.customers at what is to be loaded  ─┘              … its control row, and the turn of all
//! ```
//!
//! What the target holds is a function of the lake: the tables of all sources, each at the snapshot that its
//! control row names, put together by [`BySource`]. A load moves one of these snapshots, and writes what that
//! makes of the keys which changed. All of them move one more row of the control table, the *turn*, in the
//! transaction of their rows: whoever finds it moved has looked at snapshots that are no more, changes nothing,
//! and looks again. So the order of loads does not matter, nor how many there are at once.
//!
//! The turn's row also has a fingerprint of who shares the table, in which order, and of their columns. When
//! that changes, all rows may look otherwise: the next load of any of them puts the whole table together anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use ring::digest;
use uuid::Uuid;

use super::load::Changes;
use super::{Context, Progress, Stream, TargetRef};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, LakeTable, TableMode};
use crate::merge::{self, BySource, SharedColumn};
use crate::table::{ADDED_DEFAULT, LAKE_COLUMN_ID, SOURCE_TYPE, TableId};
use crate::target::{Applied, Deletes, Merge, Strategy, TURN, Target, TargetTable, Turn};

/// Who shares a table, and who goes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The first has the row of a key that several have.
    pub sources: Vec<SharedSource>,
    /// Of single columns, the order of all sources.
    pub columns: BTreeMap<String, Vec<usize>>,
}

/// One of the streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedSource {
    /// Its name.
    pub stream: String,
    /// Its table in the lake.
    pub lake_table: TableId,
}

/// The table that they share, as it is to be.
pub(super) struct Plan {
    columns: Vec<SharedColumn>,
    key: Vec<String>,
    /// Of all that rows depend on beside the snapshots.
    fingerprint: Uuid,
}

/// What one source has for a shared table.
struct Given {
    schema: SchemaRef,
    key: Vec<String>,
}

/// The target table as all streams want it that share it, given what one of them has.
pub(super) async fn target_table(
    lake: &Lake,
    stream: &Stream,
    shared: &Shared,
    to: &TargetRef,
    (schema, key): (&SchemaRef, &[String]),
) -> Result<(TargetTable, Plan)> {
    let mut given = Vec::new();
    for source in &shared.sources {
        if source.stream == stream.name {
            given.push(Some(Given { schema: schema.clone(), key: key.to_vec() }));
            continue;
        }
        let table = lake.table(&source.lake_table).await?;
        given.push(table.map(|table| Given { schema: table.columns(), key: table.key() }));
    }
    let plan = plan(shared, &given).map_err(|error| error.with("table", &to.table))?;
    let fields: Vec<_> = plan.columns.iter().map(|column| column.field.clone()).collect();
    let table = TargetTable {
        id: to.table.clone(),
        schema: Arc::new(Schema::new(fields)),
        key: plan.key.clone(),
        deletes: Deletes::Hard,
        versions: false,
    };
    Ok((table, plan))
}

fn plan(shared: &Shared, given: &[Option<Given>]) -> Result<Plan> {
    let wrong = |message: &str| Error::new(ErrorKind::Config, message);
    let mut key: Option<Vec<String>> = None;
    let mut columns: Vec<SharedColumn> = Vec::new();
    let mut print = format!("{shared:?}");
    for (at, given) in given.iter().enumerate() {
        let Some(Given { schema, key: own }) = given else { continue };
        let sorted = |key: &[String]| {
            let mut key = key.to_vec();
            key.sort();
            key
        };
        match &key {
            _ if own.is_empty() => {
                return Err(wrong("rows of several sources are told apart by key").hint("set `primary_key`"));
            }
            Some(key) if sorted(key) != sorted(own) => {
                return Err(wrong("the streams that share a table have other keys")
                    .with("stream", &shared.sources[at].stream)
                    .hint("set `primary_key` in each of them to the same columns"));
            }
            Some(_) => {}
            None => key = Some(own.clone()),
        }
        for field in schema.fields() {
            // A column that came back, or got another default, has other values in rows that did not change.
            let of = [LAKE_COLUMN_ID, ADDED_DEFAULT].map(|name| field.metadata().get(name));
            print.push_str(&format!("\n{at} {} {} {of:?}", field.name(), field.data_type()));
            add(&mut columns, at, field, own.contains(field.name())).map_err(|error| {
                error.with("column", field.name()).with("stream", &shared.sources[at].stream)
            })?;
        }
    }
    for column in &mut columns {
        if let Some(order) = shared.columns.get(column.field.name()) {
            column.from.sort_by_key(|at| order.iter().position(|first| first == at));
        }
    }
    let all = given.iter().all(Option::is_some);
    let known = |name: &&String| columns.iter().any(|column| column.field.name() == *name);
    if let Some(name) = shared.columns.keys().find(|name| all && !known(name)) {
        return Err(wrong("`shared` names a column that no source has").with("column", name));
    }
    let hash = digest::digest(&digest::SHA256, print.as_bytes());
    let hash: [u8; 16] = hash.as_ref()[..16].try_into().expect("a hash of 32 bytes");
    Ok(Plan { columns, key: key.unwrap_or_default(), fingerprint: Uuid::from_bytes(hash) })
}

/// Adds what one source has to say of a column. Names in the target are those of the lake now: of a column that
/// one source renames, the others still have the old one.
fn add(columns: &mut Vec<SharedColumn>, at: usize, field: &Field, key: bool) -> Result<()> {
    let source_type = field.metadata().get(SOURCE_TYPE);
    let shown = |data_type: DataType, source_type: Option<&String>| {
        let metadata = source_type.map(|name| (SOURCE_TYPE.to_owned(), name.clone()));
        Field::new(field.name(), data_type, !key).with_metadata(metadata.into_iter().collect())
    };
    let Some(column) = columns.iter_mut().find(|column| column.field.name() == field.name()) else {
        let field = shown(field.data_type().clone(), source_type);
        columns.push(SharedColumn { field: Arc::new(field), from: vec![at] });
        return Ok(());
    };
    column.from.push(at);
    let wide = wider(column.field.data_type(), field.data_type()).ok_or_else(|| {
        let message = format!(
            "the sources of a shared table give a column the types {} and {}",
            column.field.data_type(),
            field.data_type()
        );
        Error::new(ErrorKind::Config, message).hint("leave the column out of one of them with `columns`")
    })?;
    // The database's own type says more than the lake's, where all of them are of one mind.
    let same = source_type.filter(|name| column.field.metadata().get(SOURCE_TYPE) == Some(name));
    column.field = Arc::new(shown(wide, same));
    Ok(())
}

/// The type that holds each value of both, unchanged.
fn wider(one: &DataType, other: &DataType) -> Option<DataType> {
    use DataType as D;
    Some(match (one, other) {
        (one, other) if one == other => one.clone(),
        (D::Int32, D::Int64) | (D::Int64, D::Int32) => D::Int64,
        (D::Float32, D::Float64) | (D::Float64, D::Float32) => D::Float64,
        (D::Decimal128(one, scale), D::Decimal128(other, same)) if scale == same => {
            D::Decimal128(*one.max(other), *scale)
        }
        _ => return None,
    })
}

impl Plan {
    /// The table as some sources make it; of those that have nothing yet there is `None`.
    fn by_source(&self, given: Vec<Option<Arc<dyn TableProvider>>>) -> BySource {
        let (mut sides, mut places) = (Vec::new(), BTreeMap::new());
        for (at, side) in given.into_iter().enumerate() {
            if let Some(side) = side {
                places.insert(at, sides.len());
                sides.push(side);
            }
        }
        let columns = self.columns.iter().map(|column| SharedColumn {
            field: column.field.clone(),
            from: column.from.iter().filter_map(|at| places.get(at).copied()).collect(),
        });
        BySource { sides, columns: columns.collect(), key: self.key.clone(), only: None }
    }

    /// What the turn's row says once this is loaded: no other load leaves the same.
    fn turn(&self) -> Applied {
        Applied::new(self.fingerprint, SnapshotId(0)).toward(SnapshotId(0))
    }
}

/// One load of a stream into the table that it shares.
pub(super) struct SharedLoad<'a> {
    context: &'a Context,
    stream: &'a Stream,
    shared: &'a Shared,
    table: &'a LakeTable,
    target: &'a dyn Target,
    to: &'a TargetRef,
    plan: Plan,
    turn: Turn,
    /// The table as all want it that share it.
    pub(super) wanted: TargetTable,
    /// Whether it is to be put together anew, whatever changed in this source.
    pub(super) whole: bool,
}

impl<'a> SharedLoad<'a> {
    /// Looks at what is to be done. `applied` is what the target shows of the stream.
    pub(super) async fn of(
        context: &'a Context,
        stream: &'a Stream,
        shared: &'a Shared,
        table: &'a LakeTable,
        target: &'a dyn Target,
        to: &'a TargetRef,
    ) -> Result<Self> {
        // Before anything else is asked: what is read later may be newer, and then the turn has moved.
        let from = target.applied(TURN, &to.table).await?;
        let (columns, key) = (table.columns(), table.key());
        let (wanted, plan) = target_table(&context.lake, stream, shared, to, (&columns, &key)).await?;
        let mut whole = context.full_refresh;
        match from {
            Some(from) => whole |= from.lake_table != plan.fingerprint,
            // One of them may have had the table for itself.
            None => {
                for source in shared.sources.iter().filter(|source| source.stream != stream.name) {
                    whole |= target.applied(&source.stream, &to.table).await?.is_some();
                }
            }
        }
        let turn = Turn { from, to: plan.turn() };
        Ok(Self { context, stream, shared, table, target, to, plan, turn, wanted, whole })
    }

    /// What has to happen to the target.
    pub(super) async fn change(
        self,
        applied: Option<Applied>,
        goal: Applied,
        progress: &Arc<Progress>,
    ) -> Result<Merge> {
        if self.table.mode() != TableMode::Merge {
            return Err(Error::new(ErrorKind::Config, "`shared` needs lake tables of `mode: merge`")
                .with("table", self.table.id()));
        }
        let mut sides = Vec::new();
        for source in &self.shared.sources {
            sides.push(match source.stream == self.stream.name {
                true => Some(self.table.delta_as_now(None, goal.snapshot).await?.rows),
                false => {
                    let shown = shown(self.context, source, self.target, self.to).await;
                    shown.map_err(|error| error.with("source", &source.stream))?
                }
            });
        }
        let by_source = self.plan.by_source(sides);
        let Context { budget, lake, .. } = self.context;
        let runtime = merge::runtime(*budget, lake.stores())?;
        // Of another lake table, or of a change that came half the way, nobody knows which rows are there.
        let astray = applied.is_some_and(|shows| {
            shows.lake_table != goal.lake_table
                || shows.halfway.is_some_and(|halfway| halfway.toward != shows.snapshot)
        });
        let (strategy, rows, changes) = match self.whole || astray {
            true => (Strategy::Replace, None, by_source.all(runtime).await?),
            false => {
                let from = applied.map(|applied| applied.snapshot);
                let delta = self.table.delta_as_now(from, goal.snapshot).await?;
                let rows = delta.added + delta.removed;
                let changes = by_source.of_changed(delta.rows.clone(), rows, runtime).await?;
                (Strategy::Merge, Some(rows), changes)
            }
        };
        progress.start(rows);
        Ok(Merge {
            stream: self.stream.name.clone(),
            table: self.wanted,
            from: applied,
            to: goal,
            turn: Some(self.turn),
            strategy,
            changes: Box::pin(Changes::new(changes, false, progress.clone())),
            rows,
        })
    }
}

/// What the target shows of a source; `None` while it shows nothing of it.
async fn shown(
    context: &Context,
    source: &SharedSource,
    target: &dyn Target,
    to: &TargetRef,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let Some(shows) = target.applied(&source.stream, &to.table).await? else { return Ok(None) };
    // Its own load is to mend that, and may be under way.
    let lost = |message: &str| {
        Error::new(ErrorKind::Conflict, message)
            .with("table", &source.lake_table)
            .hint("load that stream first: `frazil load --full-refresh --select` with its name")
    };
    let table = context.lake.table(&source.lake_table).await?;
    let found = match table.filter(|table| table.uuid() == shows.lake_table) {
        None => Err(lost("the lake table that the target shows of another source is not there any more")),
        Some(table) if !table.snapshots().iter().any(|snapshot| snapshot.id == shows.snapshot) => {
            Err(lost("the snapshot that the target shows of another source has expired"))
        }
        Some(table) => Ok(table.delta_as_now(None, shows.snapshot).await?.rows),
    };
    match found {
        // Somebody wants the table anew: its own next load brings what it has.
        Err(_) if context.full_refresh => Ok(None),
        found => found.map(Some),
    }
}

/// A shared table as the lake has it, at the snapshots that the target says it shows.
pub struct SharedShown {
    /// Its rows.
    pub rows: BySource,
    /// The table as all want it that share it.
    pub wanted: TargetTable,
    /// By which row of the control table the target shows that, and what it is to say when rows are set right.
    pub turn: Turn,
}

/// What a shared table is to hold now, by what its control rows say.
///
/// # Errors
///
/// [`ErrorKind::Config`] where it has not been loaded yet, or not since its sources or their columns changed;
/// [`ErrorKind::Conflict`] where the lake has lost what it shows.
pub async fn shared_as_shown(
    context: &Context,
    stream: &Stream,
    shared: &Shared,
    (target, to): (&dyn Target, &TargetRef),
    table: &LakeTable,
) -> Result<SharedShown> {
    let refused = |message: &str| {
        Error::new(ErrorKind::Config, message).with("table", &to.table).hint("run `frazil load` first")
    };
    let from = target.applied(TURN, &to.table).await?;
    let (columns, key) = (table.columns(), table.key());
    let (wanted, plan) = target_table(&context.lake, stream, shared, to, (&columns, &key)).await?;
    match from {
        None => return Err(refused("the target was not loaded by the streams that share it yet")),
        Some(from) if from.lake_table != plan.fingerprint => {
            return Err(refused("the sources, or their columns, have changed since the target was loaded"));
        }
        Some(_) => {}
    }
    let mut sides = Vec::new();
    for source in &shared.sources {
        let shown = shown(context, source, target, to).await;
        sides.push(shown.map_err(|error| error.with("source", &source.stream))?);
    }
    let turn = Turn { from, to: plan.turn() };
    Ok(SharedShown { rows: plan.by_source(sides), wanted, turn })
}
