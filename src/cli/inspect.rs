//! What a run would find: the table in the source, the plan to read it, its place in the lake and
//! in the target. Nothing is written and no row is read.

use serde::Serialize;

use crate::connectors;
use crate::error::Result;
use crate::lake::{Evolution, Lake, TableMode, TableSpec};
use crate::memory::Budget;
use crate::source::{Finding, ReadPlan, Severity};
use crate::sync::{self, Stream};
use crate::table::{Fidelity, TableDescription};
use crate::target::TargetTable;

/// One stream, looked at from all sides.
pub(super) struct Inspection {
    pub(super) table: TableDescription,
    pub(super) plan: ReadPlan,
    pub(super) spec: TableSpec,
    /// What the lake's table goes through; `None` while there is no such table.
    pub(super) evolution: Option<Evolution>,
    pub(super) target: Option<TargetTable>,
    pub(super) source_findings: Vec<Finding>,
}

/// Looks at a stream. The first thing that is in the way of everything else is the error.
pub(super) async fn inspect(stream: &Stream, lake: &Lake, budget: Budget) -> Result<Inspection> {
    let source = connectors::source(&stream.source)?;
    let table = source.table(&stream.source_table).await?;
    let in_lake = lake.table(&stream.lake_table).await?;
    let position = in_lake.as_ref().map(crate::lake::LakeTable::position).transpose()?.flatten();

    let mut request = sync::read_request(stream, &table, budget)?;
    request.from = position.map(|position| position.watermark);
    request.reader = sync::reader(lake, stream);
    let source_findings = source.preflight(&request).await?;
    let plan = source.plan(&request).await?;
    let spec = sync::lake_table_plan(stream, &table, &plan)?;

    let evolution = in_lake.as_ref().map(|table| sync::evolution(stream, table, &spec)).transpose()?;
    let (schema, key) = match &evolution {
        Some(evolution) => (&evolution.after, &evolution.key),
        None => (&spec.schema, &spec.key),
    };
    let target = match &stream.target {
        Some(to) => Some(sync::wanted_table(lake, stream, to, schema, key).await?),
        None => None,
    };
    Ok(Inspection { table, plan, spec, evolution, target, source_findings })
}

impl Inspection {
    /// What the target has to say of the table that it would get.
    pub(super) async fn target_findings(&self, stream: &Stream) -> Result<Vec<Finding>> {
        match (&stream.target, &self.target) {
            (Some(to), Some(table)) => connectors::target(&to.connection)?.preflight(table).await,
            _ => Ok(Vec::new()),
        }
    }

    /// The statements that would make the target's table fit.
    pub(super) async fn target_statements(&self, stream: &Stream) -> Result<Vec<String>> {
        match (&stream.target, &self.target) {
            (Some(to), Some(table)) => connectors::target(&to.connection)?.plan(table).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Columns that are read and do not arrive exactly as they are.
    pub(super) fn inexact(&self, stream: &Stream) -> Vec<InexactColumn> {
        let read =
            |name: &String| stream.settings.columns.as_ref().is_none_or(|columns| columns.contains(name));
        self.table
            .columns
            .iter()
            .filter(|column| read(&column.name))
            .filter_map(|column| {
                let (severity, note) = match &column.fidelity {
                    Fidelity::Exact => return None,
                    Fidelity::Represented(note) => (Severity::Note, note),
                    Fidelity::Limited(note) => (Severity::Warning, note),
                };
                Some(InexactColumn {
                    column: column.name.clone(),
                    source_type: column.source_type.clone(),
                    severity,
                    note: note.clone(),
                })
            })
            .collect()
    }

    /// `merge by id`.
    pub(super) fn mode(&self) -> String {
        match self.spec.mode {
            TableMode::Merge => format!("merge by {}", self.spec.key.join(", ")),
            TableMode::Append => "append".to_owned(),
            TableMode::Replace => "replace".to_owned(),
        }
    }

    /// `changes by timestamp on updated_at (indexed)`.
    pub(super) fn change(&self) -> String {
        let how = self.plan.change.name();
        match &self.plan.cursor {
            Some(cursor) if self.plan.cursor_indexed => format!("{how} on {cursor} (indexed)"),
            Some(cursor) => format!("{how} on {cursor} (no index)"),
            None => how.to_owned(),
        }
    }
}

/// A column whose values travel in another form, or not all of them.
#[derive(Debug, Clone, Serialize)]
pub(super) struct InexactColumn {
    pub(super) column: String,
    pub(super) source_type: String,
    pub(super) severity: Severity,
    pub(super) note: String,
}
