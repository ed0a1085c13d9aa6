//! Looks at a change before anyone sees it: the checks that a user writes down for a stream.
//!
//! Expressions and shares of NULL are asked of the rows that the change brings, so they cost what
//! changed; `scope: table` asks the whole table. Counts and uniqueness are about the whole table. All
//! of it is one pass of DataFusion within the memory budget.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use datafusion::catalog::TableProvider;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::{Context, Stream};
use crate::delta::{Op, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeTable;
use crate::merge;
use crate::source::Source;
use crate::table::OP_COLUMN;

/// What a change must pass before it is shown.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Audit {
    /// Conditions in SQL that are false of no row. As of a CHECK constraint, NULL passes.
    pub expect: Vec<String>,
    /// The share of NULL that a column may have: 0 to 1.
    pub nulls: BTreeMap<String, f64>,
    /// Columns that together are different in every row of the table.
    pub unique: Vec<String>,
    /// By which share the table's number of rows may differ from the source's.
    pub rows_like_source: Option<f64>,
    /// Of which rows `expect` and `nulls` speak.
    pub scope: AuditScope,
}

/// Which rows are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditScope {
    /// Those that the change brings.
    #[default]
    Changes,
    /// All that the table has then.
    Table,
}

/// What was found wrong; empty when the change may be shown. Counts, never values.
pub(super) async fn findings(
    context: &Context,
    stream: &Stream,
    source: &dyn Source,
    table: &LakeTable,
    audited: SnapshotId,
) -> Result<Vec<String>> {
    let Some(audit) = &stream.settings.audit else { return Ok(Vec::new()) };
    let session = SessionContext::new_with_config_rt(
        merge::config(),
        merge::runtime(context.budget, context.lake.stores())?,
    );
    session.register_table("after", table.provider(Some(audited)).await?)?;
    session.register_table("changed", changed(&session, table, audited).await?)?;
    let mut findings = rows(audit, &session).await?;
    if !audit.unique.is_empty() {
        let key = audit.unique.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let sql = format!("SELECT count(*) FROM (SELECT 1 FROM after GROUP BY {key} HAVING count(*) > 1)");
        let repeated = counts(&session, &sql).await.map_err(|error| unfit(error, "unique"))?[0];
        if repeated > 0 {
            findings.push(format!(
                "({}) is not unique: {repeated} values come more than once",
                audit.unique.join(", ")
            ));
        }
    }
    if let Some(tolerance) = audit.rows_like_source {
        let here = counts(&session, "SELECT count(*) FROM after").await?[0];
        let there = source.count(&stream.source_table, stream.settings.filter.as_deref()).await?;
        let difference = here.abs_diff(i64::try_from(there).unwrap_or(i64::MAX));
        if difference as f64 > tolerance * there as f64 {
            findings.push(format!("{here} rows, and the source has {there}"));
        }
    }
    Ok(findings)
}

/// The rows that a snapshot brings.
async fn changed(
    session: &SessionContext,
    table: &LakeTable,
    audited: SnapshotId,
) -> Result<Arc<dyn TableProvider>> {
    let delta = table.delta(table.current(), audited).await?;
    let rows = session.read_table(delta.rows)?;
    if !delta.with_ops {
        return Ok(rows.into_view());
    }
    let brought = datafusion::prelude::ident(OP_COLUMN).eq(datafusion::prelude::lit(Op::Upsert as i8));
    Ok(rows.filter(brought)?.into_view())
}

/// Expressions and NULLs, in one pass over the rows.
async fn rows(audit: &Audit, session: &SessionContext) -> Result<Vec<String>> {
    let mut columns = vec!["count(*)".to_owned()];
    // Each on a line of its own: a comment in one must not swallow the next.
    columns.extend(audit.expect.iter().map(|sql| format!("count(*) FILTER (WHERE ({sql}\n) IS FALSE)")));
    columns
        .extend(audit.nulls.keys().map(|name| format!("count(*) FILTER (WHERE {} IS NULL)", quoted(name))));
    if columns.len() == 1 {
        return Ok(Vec::new());
    }
    let from = match audit.scope {
        AuditScope::Changes => "changed",
        AuditScope::Table => "after",
    };
    let sql = format!("SELECT {} FROM {from}", columns.join(", "));
    let counted = counts(session, &sql).await.map_err(|error| unfit(error, "expect"))?;
    let (all, counted) = (counted[0], &counted[1..]);
    let mut findings = Vec::new();
    for (sql, wrong) in audit.expect.iter().zip(counted) {
        if *wrong > 0 {
            findings.push(format!("`{sql}` is false in {wrong} of {all} rows"));
        }
    }
    for ((name, share), nulls) in audit.nulls.iter().zip(&counted[audit.expect.len()..]) {
        if *nulls as f64 > share * all as f64 {
            findings.push(format!(
                "`{name}` is NULL in {nulls} of {all} rows, at most {}% may be",
                share * 100.0
            ));
        }
    }
    Ok(findings)
}

/// The one row of a statement that only counts.
async fn counts(session: &SessionContext, sql: &str) -> Result<Vec<i64>> {
    let options = datafusion::prelude::SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    let mut rows = session.sql_with_options(sql, options).await?.execute_stream().await?;
    while let Some(batch) = rows.try_next().await? {
        if batch.num_rows() > 0 {
            return Ok(batch
                .columns()
                .iter()
                .map(|column| column.as_primitive::<Int64Type>().value(0))
                .collect());
        }
    }
    Err(Error::new(ErrorKind::Internal, "a count came back empty"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A check that cannot be asked is a mistake in the configuration, unless reading failed.
fn unfit(error: Error, what: &str) -> Error {
    if error.kind() == ErrorKind::Transient {
        return error;
    }
    Error::new(ErrorKind::Config, format!("the check `{what}` of `audit` cannot be asked of the table"))
        .hint("use the names of the lake's columns, and conditions that are true or false")
        .because(error)
}
