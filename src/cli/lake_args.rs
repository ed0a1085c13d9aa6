//! The command line of those verbs that ask the lake alone.

use std::time::Duration;

use clap::Args;

use super::args::{LakeArgs, duration};
use crate::config::Size;

/// Whose snapshots to list.
#[derive(Debug, Args)]
pub(super) struct SnapshotsArgs {
    /// The table in the lake: `public.orders`
    pub table: String,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// Which checkpoints to list.
#[derive(Debug, Args)]
pub(super) struct CheckpointsArgs {
    /// The group [default: all]
    pub group: Option<String>,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// What to ask the lake.
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The statement; `-` reads statements from standard input [default: a shell]
    pub sql: Option<String>,
    /// The lake as it was: a snapshot id, a time (`2026-07-01 12:00`), or a tag
    #[arg(long, value_name = "WHEN", env = "FRAZIL_AS_OF")]
    pub as_of: Option<String>,
    /// The tables of a group as they were together: its newest checkpoint (`shop`), or another (`shop@7`)
    #[arg(long, value_name = "GROUP", conflicts_with = "as_of", env = "FRAZIL_CHECKPOINT")]
    pub checkpoint: Option<String>,
    /// Memory for the query; it spills to disk beyond
    #[arg(long, value_name = "SIZE", default_value = "256MiB", env = "FRAZIL_MEMORY")]
    pub memory: Size,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// Which changes to show.
#[derive(Debug, Args)]
pub(super) struct ChangesArgs {
    /// The table in the lake: `public.orders`
    pub table: String,
    /// Changes since then: a snapshot id, a time, or a tag [default: the snapshot before `--to`]
    #[arg(long, value_name = "WHEN")]
    pub from: Option<String>,
    /// Changes up to then [default: now]
    #[arg(long, value_name = "WHEN")]
    pub to: Option<String>,
    /// Memory for the comparison; it spills to disk beyond
    #[arg(long, value_name = "SIZE", default_value = "256MiB", env = "FRAZIL_MEMORY")]
    pub memory: Size,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// Which snapshot to name.
#[derive(Debug, Args)]
pub(super) struct TagArgs {
    /// The table in the lake: `public.orders`
    pub table: String,
    /// The name [default: list those that are there]
    pub name: Option<String>,
    /// The snapshot: its id, a time, or another name [default: the current one]
    #[arg(long, value_name = "WHEN", requires = "name")]
    pub at: Option<String>,
    /// How long the name, and with it the snapshot, is kept: 90d [default: as the table's properties say]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "name")]
    pub keep: Option<Duration>,
    /// Take the name away
    #[arg(long, requires = "name", conflicts_with_all = ["at", "keep"])]
    pub delete: bool,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// How far to go back.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The table in the lake: `public.orders`
    pub table: String,
    /// The snapshot to go back to: its id, a time, or a tag
    #[arg(long, value_name = "WHEN")]
    pub to: String,
    /// Say what would be done and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}
