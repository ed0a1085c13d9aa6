//! Which streams belong to which group, and what cannot be in one.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use schemars::JsonSchema;

use super::{Selection, shown, suggest};
use crate::error::{Error, ErrorKind, Result};
use crate::source::ChangeDetection;
use crate::sync::{Group, Mode, Stream};

/// How long a group's name may be: it stands in names of tables and tags.
const NAME_LENGTH: usize = 63;
/// Each checkpoint has a tag in the metadata of the group's tables, which every commit writes: with so many it is
/// about a megabyte.
const MOST_KEPT: u32 = 10_000;

/// What is said of a group; its streams name it as their `group`.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "a map with `keep`")]
pub struct GroupEntry {
    /// How many checkpoints are kept, with the snapshots that they name: the newest hundred, if nothing is said.
    pub keep: Option<NonZeroU32>,
}

/// Refuses settings that mean nothing, and names the group whose they are. `known`: the groups that streams name.
pub(super) fn refuse(
    said: &BTreeMap<String, GroupEntry>,
    known: &BTreeSet<&str>,
) -> Result<(), (String, Error)> {
    for (name, entry) in said {
        let failed = |error: Error| Err((name.clone(), error));
        if !known.contains(name.as_str()) {
            let error = Error::new(ErrorKind::Config, format!("no stream is in the group {}", shown(name)));
            return failed(error.hint(match suggest::hint(name, known.iter().copied()) {
                Some(hint) => hint,
                None => "streams name their group: `public.orders: { group: shop }`".to_owned(),
            }));
        }
        if entry.keep.is_some_and(|keep| keep.get() > MOST_KEPT) {
            let error = Error::new(ErrorKind::Config, "a group cannot keep so many checkpoints");
            return failed(
                error.hint(format!("`keep` is {MOST_KEPT} at most: every commit writes a tag for each")),
            );
        }
    }
    Ok(())
}

/// The groups of a configuration, as its streams come by.
#[derive(Default)]
pub(super) struct Groups {
    members: BTreeMap<String, BTreeSet<String>>,
    /// The connection of each.
    sources: BTreeMap<String, String>,
    /// Groups of which streams are left out, or may be.
    partial: BTreeSet<String>,
    /// How many checkpoints of each are kept, where that is said.
    kept: BTreeMap<String, u64>,
    /// Only tables that were named are known: of a pattern there may be more.
    by_name: bool,
}

impl Groups {
    pub(super) fn of(selection: &Selection, said: &BTreeMap<String, GroupEntry>) -> Self {
        let named = |text: &String| !text.contains(['*', '?', '[', '{']);
        let by_name = !selection.select.is_empty() && selection.select.iter().all(named);
        let kept = said.iter().filter_map(|(name, entry)| Some((name.clone(), entry.keep?.get().into())));
        Self { by_name, kept: kept.collect(), ..Self::default() }
    }

    /// An entry's tables come next.
    pub(super) fn expect(&mut self, group: Option<&str>, is_pattern: bool) {
        if is_pattern && self.by_name {
            self.leave_out(group);
        }
    }

    /// A table is not selected.
    pub(super) fn leave_out(&mut self, group: Option<&str>) {
        self.partial.extend(group.map(str::to_owned));
    }

    /// A stream is. Refused if its tables cannot be read up to a place that others are read up to as well.
    pub(super) fn take(&mut self, group: Option<&str>, stream: &Stream) -> Result<()> {
        let Some(group) = group else { return Ok(()) };
        check_name(group)?;
        check(stream)?;
        let own = stream.source.name();
        let source = self.sources.entry(group.to_owned()).or_insert_with(|| own.to_owned());
        if source != own {
            let message =
                format!("the group `{group}` has streams of two connections, `{source}` and `{own}`");
            return Err(Error::new(ErrorKind::Config, message)
                .hint("each database has a log of its own, so that no place is in both: make two groups"));
        }
        self.members.entry(group.to_owned()).or_default().insert(stream.name.clone());
        Ok(())
    }

    /// Says to the streams who belongs to them.
    pub(super) fn settle(self, streams: &mut [Stream]) {
        for (name, members) in self.members {
            let whole = !self.partial.contains(&name);
            let keep = self.kept.get(&name).copied().unwrap_or(Group::KEPT);
            let group = Arc::new(Group { name, streams: members, whole, keep });
            let members = streams.iter_mut().filter(|stream| group.streams.contains(&stream.name));
            members.for_each(|stream| stream.group = Some(group.clone()));
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(fine)
        && name.len() <= NAME_LENGTH
    {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "a group cannot be named so")
        .hint("begin with a letter, go on with letters, digits and `_`: `shop`"))
}

fn check(stream: &Stream) -> Result<()> {
    let settings = &stream.settings;
    if settings.change != ChangeDetection::Log {
        return Err(Error::new(ErrorKind::Config, "`group` needs `change: log`")
            .with("change", settings.change.name())
            .hint("only a log says which changes were committed together: set `change: log`, or leave `group` out"));
    }
    if !matches!(stream.source.scheme(), "postgres" | "postgresql") {
        return Err(Error::new(ErrorKind::Config, "`group` is for `change: log` of Postgres")
            .with("connection", stream.source.name())
            .hint("a pass through the log of other databases cannot end at a place that was chosen: leave `group` out"));
    }
    if !settings.mode.is_none_or(|mode| matches!(mode, Mode::Merge | Mode::Scd2)) {
        return Err(Error::new(ErrorKind::Config, "`group` needs `mode: merge`")
            .hint("a checkpoint shows tables as they were: leave `mode` or `group` out"));
    }
    Ok(())
}
