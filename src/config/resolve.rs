//! From what was said to what it means: patterns become tables, names become connections.
//!
//! A table takes its settings from one entry: its own, else the last pattern of its source that
//! matches; below it lie `defaults`, above it flags. Patterns see what the source has; a table that
//! is named needs no discovery and is missed when it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use globset::{GlobBuilder, GlobMatcher};

use super::groups::{self, Groups};
use super::reconcile::ReconcileEntry;
use super::{Config, StreamEntry, conflicts, schedule, shown, suggest};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{Reconcile, Schedule};
use crate::sync::{Shared, Stream, TargetRef, checkpoints_of, conflicts_of, letters_of};
use crate::table::TableId;

/// Lists the tables of a source, so that patterns can be expanded.
#[async_trait]
pub trait TableLister: Send + Sync {
    /// All that can be read, with schema.
    async fn tables(&self, source: &Connection) -> Result<Vec<TableId>>;
}

/// Which streams to take.
#[derive(Debug, Default, Clone)]
pub struct Selection {
    /// Names or patterns to take; all, if empty.
    pub select: Vec<String>,
    /// Names or patterns to leave out.
    pub exclude: Vec<String>,
}

/// The streams of a configuration.
#[derive(Debug, Default)]
pub struct Resolved {
    /// In the order of the file; those of a pattern by name.
    pub streams: Vec<Stream>,
    /// When each of them runs, by its name.
    pub schedules: BTreeMap<String, Schedule>,
    /// When the places of some are compared, by their names.
    pub reconciles: BTreeMap<String, Reconcile>,
    /// What matched nothing.
    pub warnings: Vec<String>,
}

impl Config {
    /// Expands patterns and settles every setting.
    pub async fn resolve(&self, selection: &Selection, lister: &dyn TableLister) -> Result<Resolved> {
        let selects = patterns(&selection.select)?;
        let excludes = patterns(&selection.exclude)?;
        let wanted = |table: &TableId| {
            (selects.is_empty() || selects.iter().any(|pattern| pattern.matches(table)))
                && !excludes.iter().any(|pattern| pattern.matches(table))
        };
        let mut resolved = Resolved::default();
        let entries = self.entries()?;
        let shared = self.shared(&entries)?;
        let grouped = entries.iter().filter_map(|entry| entry.settings.group.as_deref()).collect();
        groups::refuse(&self.groups, &grouped).map_err(|(group, error)| match self.path {
            Some(_) => error.with("file", self.place(&["groups", &group])),
            None => error,
        })?;
        let mut groups = Groups::of(selection, &self.groups);
        for (entry, tables) in self.expand(&entries, &selects, lister, &mut resolved.warnings).await? {
            let schedule = schedule::schedule(&entry.settings)
                .map_err(|error| self.at_setting(entry.name, "schedule", error))?;
            let reconcile = entry.settings.reconcile.as_ref().map(ReconcileEntry::reconcile).transpose();
            let reconcile = reconcile.map_err(|error| self.at_setting(entry.name, "reconcile", error))?;
            groups.expect(entry.settings.group.as_deref(), entry.pattern.exact().is_none());
            for table in tables {
                if !wanted(&table) {
                    groups.leave_out(entry.settings.group.as_deref());
                    continue;
                }
                let mut stream = self.stream(entry, table)?;
                groups
                    .take(entry.settings.group.as_deref(), &stream)
                    .map_err(|error| self.at_setting(entry.name, "group", error))?;
                stream.shared = shared.get(&stream.name).cloned();
                resolved.schedules.insert(stream.name.clone(), schedule.clone());
                resolved
                    .reconciles
                    .extend(reconcile.clone().map(|reconcile| (stream.name.clone(), reconcile)));
                resolved.streams.push(stream);
            }
        }
        if resolved.streams.is_empty() && !selection.select.is_empty() {
            let mut error = Error::new(ErrorKind::Config, "no stream is selected")
                .with("select", selection.select.join(", "));
            let names = entries.iter().map(|entry| entry.name);
            if let Some(hint) = suggest::hint(&selection.select[0], names) {
                error = error.hint(hint);
            }
            return Err(error);
        }
        groups.settle(&mut resolved.streams);
        refuse_collisions(&resolved.streams)?;
        refuse_one_slot(&resolved.streams)?;
        Ok(resolved)
    }

    /// Refuses schedules that can never be kept. Of all streams: a selection of some says nothing.
    pub fn check_schedules(&self, resolved: &Resolved) -> Result<()> {
        schedule::refuse_circles(&resolved.schedules).map_err(|error| {
            if self.path.is_some() { error.with("file", self.place(&["streams"])) } else { error }
        })
    }

    /// The entries that are not disabled do not hide behind those that are: order and settings first.
    fn entries(&self) -> Result<Vec<Entry<'_>>> {
        if self.streams.is_empty() {
            return Err(Error::new(ErrorKind::Config, "the configuration has no streams")
                .with("file", self.place(&[]))
                .hint("add tables under `streams`: `public.orders: {}`, or a pattern: `public.*: {}`"));
        }
        self.streams
            .iter()
            .map(|(name, said)| {
                let settings = self.above.clone().over(said).over(&self.defaults);
                let source = settings.source.clone().ok_or_else(|| {
                    self.at(
                        name,
                        None,
                        Error::new(ErrorKind::Config, "the stream has no source")
                            .hint("set `source` in it or in `defaults`"),
                    )
                })?;
                let source = self.named(&source).map_err(|error| self.at_setting(name, "source", error))?;
                let pattern = Pattern::new(name).map_err(|error| self.at(name, None, error))?;
                Ok(Entry { name, settings, source, pattern })
            })
            .collect()
    }

    /// Who shares a table with whom, by the names of streams. Of all streams: those that are not selected take
    /// part as well.
    fn shared(&self, entries: &[Entry<'_>]) -> Result<BTreeMap<String, Arc<Shared>>> {
        let mut shared: BTreeMap<String, Arc<Shared>> = BTreeMap::new();
        for (at, said) in self.shared.iter().enumerate() {
            let failed = |error: Error| match self.path {
                Some(_) => error.with("file", self.place(&["shared", &at.to_string()])),
                None => error,
            };
            let tables = said.tables().map_err(failed)?;
            let stream = |table: &TableId| {
                let entry = entries.iter().find(|entry| entry.pattern.exact() == Some(table));
                let entry = entry.filter(|entry| entry.settings.disabled != Some(true)).ok_or_else(|| {
                    Error::new(ErrorKind::Config, "`shared` names a stream that `streams` does not have")
                        .with("stream", table)
                        .hint("each source is a stream of its own, by its name and not by a pattern")
                })?;
                self.stream(entry, table.clone())
            };
            let streams: Vec<Stream> = tables.iter().map(stream).collect::<Result<_>>().map_err(failed)?;
            let all = said.shared(&streams).map_err(failed)?;
            for stream in streams {
                if shared.insert(stream.name.clone(), all.clone()).is_some() {
                    let error = Error::new(ErrorKind::Config, "a stream shares one table only");
                    return Err(failed(error.with("stream", stream.name)));
                }
            }
        }
        Ok(shared)
    }

    /// Which tables each entry stands for.
    async fn expand<'a>(
        &self,
        entries: &'a [Entry<'a>],
        selects: &[Pattern],
        lister: &dyn TableLister,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<(&'a Entry<'a>, Vec<TableId>)>> {
        // Names alone say everything: a run of one table of a thousand lists none.
        let named: Option<Vec<TableId>> = match selects {
            [] => None,
            some => {
                some.iter().map(|pattern| pattern.exact().filter(|t| t.schema.is_some()).cloned()).collect()
            }
        };
        let mut listed: BTreeMap<&str, Vec<TableId>> = BTreeMap::new();
        let mut expanded = Vec::new();
        for (place, entry) in entries.iter().enumerate() {
            let disabled = entry.settings.disabled == Some(true);
            if let Some(table) = entry.pattern.exact() {
                expanded.push((entry, if disabled { vec![] } else { vec![table.clone()] }));
                continue;
            }
            if disabled {
                continue;
            }
            let source = entry.source.name();
            if !listed.contains_key(source) {
                let tables = match &named {
                    Some(names) => names.clone(),
                    None => lister.tables(&entry.source).await?,
                };
                listed.insert(source, tables);
            }
            let all = listed.get(source).map(Vec::as_slice).unwrap_or_default();
            let others: Vec<_> = entries
                .iter()
                .enumerate()
                .filter(|(at, other)| {
                    other.source.name() == source && (other.pattern.exact().is_some() || *at > place)
                })
                .map(|(_, other)| other)
                .collect();
            if !all.iter().any(|table| entry.pattern.matches(table)) && named.is_none() {
                warnings.push(format!("`{}` matches no table of `{source}`", entry.name));
            }
            let tables = all
                .iter()
                .filter(|table| {
                    entry.pattern.matches(table) && !others.iter().any(|other| other.reads(table))
                })
                .cloned()
                .collect();
            expanded.push((entry, tables));
        }
        Ok(expanded)
    }

    fn stream(&self, entry: &Entry<'_>, table: TableId) -> Result<Stream> {
        let target = match &entry.settings.target {
            Some(text) => Some(
                self.target(text, &table).map_err(|error| self.at_setting(entry.name, "target", error))?,
            ),
            None => None,
        };
        let lake_table = match &entry.settings.lake_table {
            Some(text) => {
                table_from(text, &table).map_err(|error| self.at_setting(entry.name, "lake_table", error))?
            }
            None => table.clone(),
        };
        let source_table = match &entry.settings.table {
            Some(_) if entry.pattern.exact().is_none() => {
                let error = Error::new(ErrorKind::Config, "`table` is for one stream, not for a pattern");
                return Err(self.at_setting(entry.name, "table", error));
            }
            Some(text) => text.parse().map_err(|error| self.at_setting(entry.name, "table", error))?,
            None => table.clone(),
        };
        let settings = entry.settings.settings();
        if target.is_some() {
            conflicts::check(&settings).map_err(|error| self.at_setting(entry.name, "conflicts", error))?;
        }
        Ok(Stream {
            name: table.to_string(),
            source: entry.source.clone(),
            source_table,
            lake_table,
            target,
            shared: None,
            group: None,
            settings,
        })
    }

    /// `dwh`, `dwh.schema` or `dwh.schema.table`; `dwh..table` for the default schema.
    fn target(&self, text: &str, table: &TableId) -> Result<TargetRef> {
        let (connection, rest) = match text.split_once('.') {
            Some((connection, rest)) => (connection, Some(rest)),
            None => (text, None),
        };
        let connection = self.named(connection)?;
        let table = match rest {
            None => TableId::bare(&table.name),
            Some(rest) => match rest.strip_prefix('.') {
                Some(name) => TableId::bare(substitute(name, table)?),
                None => match rest.parse::<TableId>()? {
                    TableId { schema: None, name } => TableId::new(substitute(&name, table)?, &table.name),
                    named => table_from_parts(&named, table)?,
                },
            },
        };
        Ok(TargetRef { connection, table })
    }

    fn at_setting(&self, stream: &str, setting: &'static str, error: Error) -> Error {
        self.at(stream, Some(setting), error)
    }

    /// Adds the stream and the place where the setting was said: in the stream, or in the defaults.
    fn at(&self, stream: &str, setting: Option<&str>, error: Error) -> Error {
        let error = error.with("stream", super::plain(stream));
        if self.path.is_none() {
            return error;
        }
        let place = match setting {
            None => self.place(&["streams", stream]),
            Some(setting) if self.says(&["streams", stream], setting) => {
                self.place(&["streams", stream, setting])
            }
            Some(setting) if self.says(&["defaults"], setting) => self.place(&["defaults", setting]),
            Some(_) => return error,
        };
        error.with("file", place)
    }

    fn says(&self, path: &[&str], key: &str) -> bool {
        let full: Vec<&str> = path.iter().copied().chain([key]).collect();
        self.tree.has(&full)
    }
}

/// One entry of `streams`, settled.
struct Entry<'a> {
    name: &'a str,
    settings: StreamEntry,
    source: Connection,
    pattern: Pattern,
}

impl Entry<'_> {
    /// Whether this is the entry of a table of its source.
    fn reads(&self, table: &TableId) -> bool {
        match self.settings.table.as_ref().and_then(|own| own.parse().ok()) {
            Some(own) => Pattern::Exact(own).matches(table),
            None => self.pattern.matches(table),
        }
    }
}

/// A table's name, or a pattern of names.
enum Pattern {
    Exact(TableId),
    /// Against `schema.name`; against the name alone when the pattern has no dot.
    Glob {
        matcher: GlobMatcher,
        whole: bool,
    },
}

impl Pattern {
    fn new(text: &str) -> Result<Self> {
        if !text.contains(['*', '?', '[', '{']) {
            return Ok(Self::Exact(text.parse()?));
        }
        let glob = GlobBuilder::new(text).build().map_err(|source| {
            Error::new(ErrorKind::Config, format!("{} is not a pattern: {}", shown(text), source.kind()))
                .hint("`*` is any text, `?` any character, `[ab]` one of these, `{a,b}` either")
        })?;
        Ok(Self::Glob { matcher: glob.compile_matcher(), whole: text.contains('.') })
    }

    fn exact(&self) -> Option<&TableId> {
        match self {
            Self::Exact(table) => Some(table),
            Self::Glob { .. } => None,
        }
    }

    fn matches(&self, table: &TableId) -> bool {
        match self {
            Self::Exact(exact) if exact.schema.is_none() || table.schema.is_none() => {
                exact.name == table.name && in_default_schema(exact) && in_default_schema(table)
            }
            Self::Exact(exact) => exact == table,
            Self::Glob { matcher, whole: true } => matcher.is_match(table.to_string()),
            Self::Glob { matcher, whole: false } => matcher.is_match(&table.name),
        }
    }
}

/// A name without schema means the database's default one: `public`, `main`, `dbo`.
fn in_default_schema(table: &TableId) -> bool {
    table.schema.as_deref().is_none_or(|schema| matches!(schema, "public" | "main" | "dbo"))
}

fn patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

fn table_from(text: &str, stream: &TableId) -> Result<TableId> {
    table_from_parts(&text.parse()?, stream)
}

fn table_from_parts(parts: &TableId, stream: &TableId) -> Result<TableId> {
    let schema = parts.schema.as_deref().map(|schema| substitute(schema, stream)).transpose()?;
    Ok(TableId { schema, name: substitute(&parts.name, stream)? })
}

/// Fills in `{stream_schema}` and `{stream_table}`.
fn substitute(text: &str, stream: &TableId) -> Result<String> {
    const KNOWN: [&str; 2] = ["stream_schema", "stream_table"];
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let (name, after) = after.split_once('}').ok_or_else(|| {
            Error::new(ErrorKind::Config, "`{` without `}`")
                .hint("write `{stream_schema}` or `{stream_table}`")
        })?;
        match name {
            "stream_table" => filled.push_str(&stream.name),
            "stream_schema" => filled.push_str(stream.schema.as_deref().ok_or_else(|| {
                Error::new(ErrorKind::Config, "the stream's name has no schema for `{stream_schema}`")
                    .hint("write the stream as `schema.table`")
            })?),
            other => {
                let error = Error::new(ErrorKind::Config, format!("unknown variable {}", shown(other)));
                return Err(match suggest::hint(other, KNOWN) {
                    Some(hint) => error.hint(hint),
                    None => error,
                });
            }
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Two streams into one table would undo each other's rows.
fn refuse_collisions(streams: &[Stream]) -> Result<()> {
    let mut lake = BTreeSet::new();
    let mut targets = BTreeMap::new();
    for stream in streams {
        let id = &stream.lake_table;
        if !lake.insert((id.schema_or("main"), &id.name)) {
            return Err(Error::new(ErrorKind::Config, format!("two streams write the lake table `{id}`"))
                .with("stream", &stream.name)
                .hint("give one of them another `lake_table`"));
        }
        let Some(target) = &stream.target else { continue };
        let before = targets.insert((target.connection.name(), &target.table), &stream.shared);
        if before.is_some_and(|shared| shared.is_none() || *shared != stream.shared) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("two streams write the table `{}` of `{}`", target.table, target.connection.name()),
            )
            .with("stream", &stream.name)
            .hint("keep schemas apart with `target: dwh.{stream_schema}`, or say under `shared` which of them goes first"));
        }
    }
    // What cannot be carried, and who else changed rows, is written down in tables beside a stream's own.
    for stream in streams {
        let of = &stream.lake_table;
        let checkpoints = stream.group.as_ref().map(|group| checkpoints_of(&group.name));
        let beside = [letters_of(of), conflicts_of(of)];
        if let Some(taken) =
            beside.iter().chain(&checkpoints).find(|id| lake.contains(&(id.schema_or("main"), &id.name)))
        {
            let message =
                format!("the lake table `{taken}` is kept for what the stream `{}` notes", stream.name);
            return Err(Error::new(ErrorKind::Config, message)
                .hint("give the stream that writes it another `lake_table`"));
        }
    }
    Ok(())
}

/// Two readers of one slot would each find what the other one left.
fn refuse_one_slot(streams: &[Stream]) -> Result<()> {
    let mut slots = BTreeMap::new();
    for stream in streams {
        let Some(slot) = &stream.settings.log.slot else { continue };
        if let Some(other) = slots.insert((stream.source.name(), slot), &stream.name) {
            return Err(Error::new(ErrorKind::Config, format!("two streams read the slot `{slot}`"))
                .with("stream", &stream.name)
                .with("other stream", other)
                .hint("give each its own, or leave `slot` out: then it makes one"));
        }
    }
    Ok(())
}
