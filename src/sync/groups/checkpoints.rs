//! The checkpoints of a group, in a table of the lake: `main.<group>__checkpoints`, a row for each of its tables.
//!
//! ```text
//! checkpoint  position    source_time  committed_at  stream         lake_table     snapshot  tag …
//! 7           0/1A2B3C4D  10:00:01     10:00:02      public.orders  public.orders  42        frazil_checkpoint_shop_7_42
//! 7           0/1A2B3C4D  10:00:01     10:00:02      public.items   public.items   51        frazil_checkpoint_shop_6_51
//! ```
//!
//! The table is written whole in each commit, so it is one small file that any engine reads. Its position is the
//! number of the newest checkpoint: of two runners that write one, the second has changed nothing.
//!
//! Tags keep the snapshots from expiring. They are put before the commit and taken away after one that no longer
//! names them: a tag whose number is beyond the newest checkpoint may be of one that is about to be written, and
//! stays. What a crash leaves goes with a later checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Context;
use super::rows::{batch, schema, take};
use crate::delta::{LogPlace, SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::lake::{
    Change, DEFAULT_NAMESPACE, Effect, Lake, LakeTable, Retention, TableMode, TableSpec, our_name,
};
use crate::maintain::{self, Policy};
use crate::memory::Budget;
use crate::merge;
use crate::table::TableId;

/// Ends the name of the table.
const SUFFIX: &str = "__checkpoints";
/// Whoever reads the list has read it after this.
const READERS: Duration = Duration::from_secs(3600);

/// The table of a group's checkpoints.
pub fn checkpoints_of(group: &str) -> TableId {
    TableId::bare(format!("{group}{SUFFIX}"))
}

/// The groups that have checkpoints in the lake.
pub async fn groups(lake: &Lake) -> Result<Vec<String>> {
    let tables = lake.tables().await?;
    let of_ours = tables.iter().filter_map(|id| {
        let group = id.name.strip_suffix(SUFFIX)?;
        (id.schema_or(DEFAULT_NAMESPACE) == DEFAULT_NAMESPACE).then(|| group.to_owned())
    });
    Ok(of_ours.collect())
}

/// One state of all tables of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// The group.
    pub group: String,
    /// Counts up.
    pub checkpoint: u64,
    /// The place in the source's log: every transaction before it is in all of the tables, none after it in any.
    pub position: String,
    /// The server that this place is of, where it says who it is.
    pub server: Option<String>,
    /// When the source was asked for that place, by its own clock.
    pub source_time: DateTime<Utc>,
    /// When the checkpoint was written.
    pub committed_at: DateTime<Utc>,
    /// What it consists of.
    pub tables: Vec<CheckpointTable>,
}

/// A table at a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointTable {
    /// The stream that wrote it.
    pub stream: String,
    /// Where its rows came from: `connection:table`.
    pub source: String,
    /// The table in the lake.
    #[serde(serialize_with = "as_text")]
    pub lake_table: TableId,
    /// Its UUID: one of the same name that was made later is another table.
    pub table_uuid: Uuid,
    /// The snapshot that shows it.
    pub snapshot: SnapshotId,
    /// The tag that keeps the snapshot.
    pub tag: String,
}

fn as_text<S: serde::Serializer>(table: &TableId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(table)
}

/// The checkpoints of a group, oldest first; `None` when there never was one.
pub async fn checkpoints(lake: &Lake, group: &str, budget: Budget) -> Result<Option<Vec<Checkpoint>>> {
    match lake.table(&checkpoints_of(group)).await? {
        Some(table) => read(&table, lake, group, budget).await.map(Some),
        None => Ok(None),
    }
}

/// A table of a new checkpoint.
pub(super) struct Part {
    pub(super) stream: String,
    pub(super) source: String,
    pub(super) lake_table: TableId,
    pub(super) snapshot: SnapshotId,
}

/// The position of the table of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Newest {
    checkpoint: u64,
}

/// Writes down that tables are at a place, and keeps so many checkpoints. Says the checkpoint's number, and
/// whether it is new: where no table has changed since the newest one, that one stands for this place too.
pub(super) async fn record(
    context: &Context,
    group: &str,
    place: &LogPlace,
    parts: &[Part],
    keep: u64,
) -> Result<(u64, bool)> {
    let id = checkpoints_of(group);
    let mut table = match context.lake.table(&id).await? {
        Some(table) => table,
        None => context.lake.create(spec(id.clone())).await?,
    };
    let position = table.position()?.map(|position| position.watermark);
    let newest = newest(&table, position.as_ref())?;
    let mut known = read(&table, &context.lake, group, context.budget).await?;
    if let Some(last) = known.last().filter(|last| shows(last, parts)) {
        return Ok((last.checkpoint, false));
    }
    let number = newest + 1;
    let mut tables = Vec::new();
    for part in parts {
        tables.push(pin(context, group, number, part, &known).await?);
    }
    faults::point(faults::BEFORE_CHECKPOINT)?;
    known.push(Checkpoint {
        group: group.to_owned(),
        checkpoint: number,
        position: place.at.clone(),
        server: place.server.clone(),
        source_time: place.time,
        committed_at: Utc::now(),
        tables,
    });
    let (gone, kept): (Vec<_>, Vec<_>) = known.into_iter().partition(|it| it.checkpoint + keep <= number);
    write(&mut table, position, number, &kept, context).await?;
    faults::point(faults::AFTER_CHECKPOINT)?;
    if let Err(error) = tidy_up(context, group, &mut table, &gone, &kept).await {
        tracing::warn!(group, %error, "what checkpoints left behind was not cleaned up");
    }
    Ok((number, true))
}

/// Whether a checkpoint shows just these snapshots.
fn shows(checkpoint: &Checkpoint, parts: &[Part]) -> bool {
    let theirs = checkpoint.tables.iter().map(|it| (&it.stream, &it.lake_table, it.snapshot));
    let ours = parts.iter().map(|it| (&it.stream, &it.lake_table, it.snapshot));
    theirs.collect::<BTreeSet<_>>() == ours.collect::<BTreeSet<_>>()
}

/// Keeps a table's snapshot from expiring, and lets go of those that no checkpoint names.
async fn pin(
    context: &Context,
    group: &str,
    number: u64,
    part: &Part,
    known: &[Checkpoint],
) -> Result<CheckpointTable> {
    let gone =
        || Error::new(ErrorKind::Conflict, "the table was dropped just now").with("table", &part.lake_table);
    let mut table = context.lake.table(&part.lake_table).await?.ok_or_else(gone)?;
    let named: BTreeMap<&str, SnapshotId> = known
        .iter()
        .flat_map(|checkpoint| &checkpoint.tables)
        .filter(|it| it.lake_table == part.lake_table && it.table_uuid == table.uuid())
        .map(|it| (it.tag.as_str(), it.snapshot))
        .collect();
    // An older checkpoint's tag on the same snapshot serves this one too.
    let there =
        named.iter().find(|(_, snapshot)| **snapshot == part.snapshot).map(|(tag, _)| (*tag).to_owned());
    let tag = there.unwrap_or_else(|| tag(group, number, part.snapshot));
    let refs = table.refs();
    let dead = refs.iter().map(|it| &it.name).filter(|name| {
        number_of(group, name).is_some_and(|of| of < number) && !named.contains_key(name.as_str())
    });
    let dead: Vec<String> = dead.cloned().collect();
    table.pin(Some((&tag, part.snapshot)), &dead).await?;
    Ok(CheckpointTable {
        stream: part.stream.clone(),
        source: part.source.clone(),
        lake_table: part.lake_table.clone(),
        table_uuid: table.uuid(),
        snapshot: part.snapshot,
        tag,
    })
}

/// Takes away tags of tables that left the group, and looks after the table of checkpoints.
async fn tidy_up(
    context: &Context,
    group: &str,
    table: &mut LakeTable,
    gone: &[Checkpoint],
    kept: &[Checkpoint],
) -> Result<()> {
    let tables = |of: &[Checkpoint]| -> BTreeSet<TableId> {
        of.iter().flat_map(|it| &it.tables).map(|it| it.lake_table.clone()).collect()
    };
    for id in tables(gone).difference(&tables(kept)) {
        let Some(mut left) = context.lake.table(id).await? else { continue };
        let refs = left.refs().into_iter().map(|it| it.name);
        let tags: Vec<String> = refs.filter(|name| number_of(group, name).is_some()).collect();
        left.pin(None, &tags).await?;
    }
    let retention = Retention { keep_for: Some(READERS), ..context.maintenance.retention };
    let policy = Policy { retention, ..context.maintenance };
    maintain::after_pass(table, &policy, context.budget).await.map(drop)
}

/// `frazil_checkpoint_<group>_<number>_<snapshot>`
fn tag(group: &str, number: u64, snapshot: SnapshotId) -> String {
    our_name(&format!("checkpoint_{group}_{number}_{snapshot}"))
}

/// For which checkpoint of the group a tag was made, if it is one of its.
fn number_of(group: &str, tag: &str) -> Option<u64> {
    let rest = tag.strip_prefix(&our_name(&format!("checkpoint_{group}_")))?;
    let (number, snapshot) = rest.split_once('_')?;
    snapshot.parse::<i64>().ok()?;
    number.parse().ok()
}

fn newest(table: &LakeTable, position: Option<&Watermark>) -> Result<u64> {
    let Some(position) = position else { return Ok(0) };
    let newest: Newest = serde_json::from_str(position.as_str()).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "the position of a table of checkpoints cannot be read")
            .with("table", table.id())
            .because(error)
    })?;
    Ok(newest.checkpoint)
}

fn spec(id: TableId) -> TableSpec {
    TableSpec {
        id,
        schema: schema(),
        mode: TableMode::Replace,
        key: Vec::new(),
        partition_by: Vec::new(),
        format_version: None,
        sort_by: Vec::new(),
    }
}

async fn write(
    table: &mut LakeTable,
    from: Option<Watermark>,
    number: u64,
    checkpoints: &[Checkpoint],
    context: &Context,
) -> Result<()> {
    let mut writer = table.writer(context.budget)?;
    writer.write(&batch(checkpoints)?).await?;
    let to = serde_json::to_string(&Newest { checkpoint: number }).expect("a number is JSON");
    let change = Change {
        files: writer.finish().await?,
        effect: Effect::Replace,
        from,
        to: Watermark::new(to),
        summary: [("frazil.run".to_owned(), context.run.to_string())].into(),
    };
    table.commit(change, context.budget).await.map(drop)
}

async fn read(table: &LakeTable, lake: &Lake, group: &str, budget: Budget) -> Result<Vec<Checkpoint>> {
    if table.current().is_none() {
        return Ok(Vec::new());
    }
    let runtime = merge::runtime(budget, lake.stores())?;
    let session = SessionContext::new_with_config_rt(merge::config(), runtime);
    let mut rows = session.read_table(table.provider(None).await?)?.execute_stream().await?;
    let mut found = BTreeMap::new();
    while let Some(batch) = rows.next().await {
        take(&batch?, group, &mut found).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "a checkpoint cannot be read").with("table", table.id())
        })?;
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(in super::super) fn checkpoint(number: u64) -> Checkpoint {
        let table = |name: &str, snapshot| CheckpointTable {
            stream: format!("public.{name}"),
            source: format!("shop:public.{name}"),
            lake_table: TableId::new("odd.schema", name),
            table_uuid: Uuid::from_u128(7),
            snapshot: SnapshotId(snapshot),
            tag: tag("shop", number, SnapshotId(snapshot)),
        };
        Checkpoint {
            group: "shop".to_owned(),
            checkpoint: number,
            position: "0/1A2B".to_owned(),
            server: (number == 1).then(|| "77/1".to_owned()),
            source_time: DateTime::from_timestamp_micros(1_763_722_800_000_001).unwrap(),
            committed_at: DateTime::from_timestamp_micros(1_763_722_800_000_002).unwrap(),
            tables: vec![table("orders", 42), table("items", i64::MAX)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::checkpoint;
    use super::*;
    use crate::lake::{CatalogSettings, LakeSettings};

    #[test]
    fn a_tag_says_whose_it_is() {
        let tag = tag("shop_1", 7, SnapshotId(42));
        assert_eq!(tag, "frazil_checkpoint_shop_1_7_42");
        assert_eq!(number_of("shop_1", &tag), Some(7));
        // A group whose name is the beginning of another one.
        assert_eq!(number_of("shop", &tag), None);
        assert_eq!(number_of("shop_1", "shop_1_7_42"), None);
    }

    #[test]
    fn a_checkpoint_stands_as_long_as_all_its_snapshots_do() {
        let part = |name: &str, snapshot| Part {
            stream: format!("public.{name}"),
            source: String::new(),
            lake_table: TableId::new("odd.schema", name),
            snapshot: SnapshotId(snapshot),
        };
        let last = checkpoint(3);
        assert!(shows(&last, &[part("items", i64::MAX), part("orders", 42)]));
        assert!(!shows(&last, &[part("items", 5), part("orders", 42)]));
        assert!(!shows(&last, &[part("orders", 42)]), "a table left the group");
        assert!(!shows(&last, &[part("items", i64::MAX), part("orders", 42), part("new", 1)]));
    }
    struct Shop {
        context: Context,
        table: LakeTable,
        _folder: tempfile::TempDir,
    }

    impl Shop {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let settings = LakeSettings {
                warehouse: folder.path().join("lake").display().to_string(),
                catalog: CatalogSettings::default(),
                options: BTreeMap::new(),
            };
            let lake = Lake::open(&settings).await.unwrap();
            let table = lake.create(spec(TableId::new("public", "orders"))).await.unwrap();
            let context = Context::new(lake, Budget::new(256 << 20, 1).unwrap(), Policy::default());
            Self { context, table, _folder: folder }
        }

        /// A new snapshot, and a checkpoint of it.
        async fn step(&mut self, number: u64) -> Result<(u64, bool)> {
            self.table.reload().await.unwrap();
            let from = self.table.position().unwrap().map(|position| position.watermark);
            write(&mut self.table, from, number, &[checkpoint(number)], &self.context).await.unwrap();
            self.record().await
        }

        async fn record(&self) -> Result<(u64, bool)> {
            let place = LogPlace { server: None, at: "0/7".to_owned(), time: Utc::now() };
            let part = Part {
                stream: "public.orders".to_owned(),
                source: "shop:public.orders".to_owned(),
                lake_table: self.table.id().clone(),
                snapshot: self.table.current().unwrap(),
            };
            record(&self.context, "shop", &place, &[part], 3).await
        }

        async fn list(&self) -> Vec<Checkpoint> {
            checkpoints(&self.context.lake, "shop", self.context.budget).await.unwrap().unwrap()
        }

        /// The numbers for which there are tags.
        async fn tags(&mut self) -> Vec<u64> {
            self.table.reload().await.unwrap();
            let numbers = self.table.refs().into_iter().filter_map(|it| number_of("shop", &it.name));
            let mut numbers: Vec<u64> = numbers.collect();
            numbers.sort_unstable();
            numbers
        }
    }

    #[tokio::test]
    async fn the_newest_are_kept_with_their_snapshots_and_the_others_let_go() {
        let mut shop = Shop::new().await;
        for number in 1..=6 {
            assert_eq!(shop.step(number).await.unwrap(), (number, true));
            assert_eq!(shop.record().await.unwrap(), (number, false), "nothing has changed");
        }
        let listed = shop.list().await;
        assert_eq!(listed.iter().map(|it| it.checkpoint).collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!(shop.tags().await, [3, 4, 5, 6], "the one that went last is untagged by the next");
        let nothing = Retention { keep_for: Some(Duration::ZERO), at_least: Some(1), at_most: Some(1) };
        let later = Utc::now() + chrono::TimeDelta::seconds(5);
        shop.table.expire(nothing, later).await.unwrap();
        let kept: Vec<SnapshotId> = shop.table.snapshots().iter().map(|it| it.id).collect();
        assert!(listed.iter().all(|it| kept.contains(&it.tables[0].snapshot)));
        assert_eq!(kept.len(), 4);
    }

    #[tokio::test]
    async fn what_a_crash_left_goes_and_what_may_still_be_written_stays() {
        let mut shop = Shop::new().await;
        shop.step(1).await.unwrap();
        let at = shop.table.current().unwrap();
        // Tagged for the second and the fourth checkpoint by runners that did not come to their ends.
        for name in ["checkpoint_shop_2_7", "checkpoint_shop_4_7", "checkpoint_shop_2_2_7"] {
            shop.table.pin(Some((&our_name(name), at)), &[]).await.unwrap();
        }
        shop.step(2).await.unwrap();
        assert_eq!(shop.tags().await, [1, 2, 2, 4]);
        shop.step(3).await.unwrap();
        assert_eq!(shop.tags().await, [1, 2, 3, 4], "the second one was written with another tag");
        assert!(shop.table.named(&our_name("checkpoint_shop_2_2_7")).is_some(), "another group's");
    }

    #[tokio::test]
    async fn of_two_runners_the_second_writes_no_checkpoint() {
        let mut shop = Shop::new().await;
        shop.step(1).await.unwrap();
        let id = checkpoints_of("shop");
        let mut slow = shop.context.lake.table(&id).await.unwrap().unwrap();
        let from = slow.position().unwrap().map(|position| position.watermark);
        shop.step(2).await.unwrap();
        let late = write(&mut slow, from, 2, &[checkpoint(2)], &shop.context).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Conflict);
        assert_eq!(shop.list().await.len(), 2);
    }

    #[tokio::test]
    async fn a_table_that_left_loses_its_tags() {
        let mut shop = Shop::new().await;
        shop.step(1).await.unwrap();
        let other = shop.context.lake.create(spec(TableId::new("public", "items"))).await.unwrap();
        let mut orders = std::mem::replace(&mut shop.table, other);
        for number in 2..=4 {
            shop.step(number).await.unwrap();
        }
        orders.reload().await.unwrap();
        assert_eq!(orders.refs().len(), 1, "{:?}", orders.refs());
    }
}
