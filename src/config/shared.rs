//! `shared`: tables that several streams feed, and who goes first.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;

use super::Names;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Mode, OnReject, Shared, SharedSource, Stream};
use crate::table::TableId;
use crate::target::Deletes;

/// A table of a target that several streams feed: they name it as their `target`.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map with `sources` and `columns`")]
pub struct SharedEntry {
    /// The streams, by name. Of a key that several have, the first has the row.
    pub(super) sources: Names,
    /// Of single columns, who goes before the others: `status: shop.customers`.
    #[serde(default)]
    pub(super) columns: BTreeMap<String, Names>,
}

impl SharedEntry {
    /// The streams that are named.
    pub(super) fn tables(&self) -> Result<Vec<TableId>> {
        self.sources.0.iter().map(|name| name.parse()).collect()
    }

    /// What it means for these streams, which are those of [`tables`](Self::tables).
    pub(super) fn shared(&self, streams: &[Stream]) -> Result<Arc<Shared>> {
        let wrong = |message: &str| Error::new(ErrorKind::Config, message);
        if streams.len() < 2 {
            return Err(wrong("a table is `shared` by two streams or more"));
        }
        for (at, stream) in streams.iter().enumerate() {
            if streams[..at].iter().any(|before| before.name == stream.name) {
                return Err(wrong("`shared` names a stream twice").with("stream", &stream.name));
            }
            check(stream, &streams[0]).map_err(|error| error.with("stream", &stream.name))?;
        }
        let place = |name: &String| {
            let table: TableId = name.parse()?;
            let found = streams.iter().position(|stream| stream.name == table.to_string());
            found.ok_or_else(|| {
                wrong("`columns` names a stream that is not one of `sources`").with("stream", table)
            })
        };
        let order = |(column, first): (&String, &Names)| {
            let mut order: Vec<usize> = first.0.iter().map(place).collect::<Result<_>>()?;
            order.extend(
                (0..streams.len()).filter(|at| !first.0.iter().any(|name| *name == streams[*at].name)),
            );
            Ok((column.clone(), order))
        };
        let source = |stream: &Stream| SharedSource {
            stream: stream.name.clone(),
            lake_table: stream.lake_table.clone(),
        };
        Ok(Arc::new(Shared {
            sources: streams.iter().map(source).collect(),
            columns: self.columns.iter().map(order).collect::<Result<_>>()?,
        }))
    }
}

/// Refuses what is not decided for rows of several sources.
fn check(stream: &Stream, first: &Stream) -> Result<()> {
    let wrong = |message: &str| Error::new(ErrorKind::Config, message);
    let there = |stream: &Stream| {
        stream.target.as_ref().map(|target| (target.connection.name().to_owned(), target.table.clone()))
    };
    if there(stream).is_none() || there(stream) != there(first) {
        return Err(wrong("streams that share a table name the same `target`")
            .hint("target: dwh.public.customers, with the table, in each of them"));
    }
    let settings = &stream.settings;
    if settings.mode.is_some_and(|mode| mode != Mode::Merge) {
        return Err(wrong("rows of several sources are told apart by key: `shared` needs `mode: merge`"));
    }
    let odd = [
        ("on_reject", settings.on_reject != OnReject::Stop),
        ("conflicts", !settings.conflicts.are_blind()),
        ("batch_rows", settings.batch_rows.is_some()),
        ("deletes", settings.deletes != Deletes::Hard),
    ];
    match odd.into_iter().find(|(_, said)| *said) {
        Some((setting, _)) => Err(wrong(&format!("`{setting}` and `shared` do not go together yet"))
            .hint("leave the setting out of the streams that share a table")),
        None => Ok(()),
    }
}
