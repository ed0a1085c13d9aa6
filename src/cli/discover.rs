//! `discover`: the tables of a database, and what could be made of them.

use globset::Glob;

use super::args::{DiscoverArgs, Global, Output};
use super::output::{self, Exit};
use crate::config::units::{show_bytes, show_count};
use crate::config::{self, Config, Overrides};
use crate::connection::Connection;
use crate::connectors;
use crate::error::{Error, ErrorKind, Result};
use crate::table::{CursorCandidate, TableDescription, TableKind};

/// Lists tables.
pub(super) async fn discover(global: &Global, args: &DiscoverArgs) -> Result<Exit> {
    let connections = connections(global, args)?;
    let several = connections.len() > 1;
    for connection in &connections {
        let tables = tables(connection, &args.tables).await?;
        if several && global.output != Output::Json {
            output::line(format!("{connection:?}"))?;
        }
        if global.output == Output::Json {
            tables.iter().try_for_each(output::json)?;
        } else {
            let rows: Vec<_> = tables.iter().map(row).collect();
            output::table(&["table", "kind", "rows", "size", "key", "cursor"], &rows)?;
        }
    }
    Ok(Exit::Done)
}

fn connections(global: &Global, args: &DiscoverArgs) -> Result<Vec<Connection>> {
    if let Some(url) = args.connection.as_deref().filter(|text| config::is_url(text)) {
        return Ok(vec![config::connection_by_url(url)?]);
    }
    let overrides = Overrides { config: global.config.clone(), ..Overrides::default() };
    let config = Config::load(&overrides, &config::environment)?;
    match &args.connection {
        Some(name) => Ok(vec![config.connection(name)?]),
        None => config.sources(),
    }
}

/// The tables of a database that match one of the patterns; all, if there are none.
pub(super) async fn tables(connection: &Connection, patterns: &[String]) -> Result<Vec<TableDescription>> {
    let globs = patterns
        .iter()
        .map(|text| {
            let glob = Glob::new(text).map_err(|source| {
                Error::new(ErrorKind::Config, format!("`{text}` is not a pattern: {}", source.kind()))
            })?;
            Ok((glob.compile_matcher(), text.contains('.')))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut tables = connectors::source(connection)?.tables().await?;
    tables.retain(|table| {
        globs.is_empty()
            || globs.iter().any(|(glob, whole)| match whole {
                true => glob.is_match(table.id.to_string()),
                false => glob.is_match(&table.id.name),
            })
    });
    Ok(tables)
}

fn row(table: &TableDescription) -> Vec<String> {
    vec![
        table.id.to_string(),
        kind(table.kind).to_owned(),
        table.rows.map(show_count).unwrap_or_default(),
        table.bytes.map(show_bytes).unwrap_or_default(),
        table.primary_key().map(|key| key.join(", ")).unwrap_or_default(),
        cursors(table).join(", "),
    ]
}

/// Columns that could be cursors, the best first: `updated_at (timestamp, indexed)`.
pub(super) fn cursors(table: &TableDescription) -> Vec<String> {
    let mut candidates: Vec<_> =
        table.columns.iter().filter_map(|column| column.cursor.map(|rank| (rank, column))).collect();
    candidates.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    let show = |(rank, column): &(CursorCandidate, &crate::table::ColumnDescription)| {
        let what = match rank {
            CursorCandidate::Id => "id",
            CursorCandidate::Version => "version",
            CursorCandidate::Timestamp => "timestamp",
        };
        format!("{} ({what}{})", column.name, if column.indexed { ", indexed" } else { "" })
    };
    candidates.iter().map(show).collect()
}

/// A word for what a relation is.
pub(super) fn kind(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Table => "table",
        TableKind::PartitionedTable => "partitioned table",
        TableKind::View => "view",
        TableKind::MaterializedView => "materialized view",
        TableKind::ForeignTable => "foreign table",
    }
}
