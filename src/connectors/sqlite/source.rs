//! SQLite as a source.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;

use super::plan::{Cursor, resolve};
use super::{describe, read, triggers};
use crate::clients::sqlite::{File, on_a_thread};
use crate::connection::Connection;
use crate::connectors::sql::{SQLITE, counting};
use crate::delta::Watermark;
use crate::error::Result;
use crate::source::{
    Arrangement, ChangeDetection, Finding, Goal, ReadPlan, ReadRequest, Reading, Severity, Source,
};
use crate::table::{TableDescription, TableId};

/// A source that opens its file when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(SqliteSource { file: File::of(connection)? }))
}

struct SqliteSource {
    file: File,
}

impl SqliteSource {
    /// Runs something that blocks, with the file.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        on_a_thread(move || work(&file)).await
    }
}

#[async_trait]
impl Source for SqliteSource {
    async fn tables(&self) -> Result<Vec<TableDescription>> {
        self.blocking(|file| {
            let database = file.open()?;
            describe::names(file, &database)?
                .iter()
                .map(|name| Ok(describe::describe(file, &database, name)?.table))
                .collect()
        })
        .await
    }

    async fn table(&self, table: &TableId) -> Result<TableDescription> {
        let table = table.clone();
        self.blocking(move |file| Ok(describe::find(file, &file.open()?, &table)?.table)).await
    }

    async fn plan(&self, request: &ReadRequest) -> Result<ReadPlan> {
        let request = request.clone();
        self.blocking(move |file| {
            if request.change == ChangeDetection::Trigger {
                return triggers::plan(file, &request);
            }
            let database = file.open()?;
            let resolved = resolve(&request, &describe::find(file, &database, &request.table)?)?;
            // The user's own condition shows its mistakes here, not in the middle of a run.
            database.prepare(&resolved.plan.statement).map_err(|error| file.error(error))?;
            Ok(resolved.plan)
        })
        .await
    }

    async fn open(&self, request: ReadRequest) -> Result<Box<dyn Reading>> {
        let open = move |file: &File| match request.change {
            ChangeDetection::Trigger => triggers::open(file, request),
            _ => read::open(file, request, || Utc::now().timestamp_micros()),
        };
        Ok(Box::new(self.blocking(open).await?))
    }

    async fn acknowledge(&self, _table: &TableId, position: &Watermark) -> Result<()> {
        if !triggers::is_position(position) {
            return Ok(());
        }
        let position = position.clone();
        if let Err(error) = self.blocking(move |file| triggers::acknowledge(file, &position)).await {
            // The rows are in the lake. The next pass notes it.
            tracing::warn!(%error, "the source does not know that the lake has the changes");
        }
        Ok(())
    }

    async fn arrange(&self, request: &ReadRequest, goal: Goal) -> Result<Arrangement> {
        if request.change != ChangeDetection::Trigger {
            let change = request.change.name();
            return Ok(Arrangement::nothing(format!("`change: {change}` needs nothing of ours here")));
        }
        let request = request.clone();
        self.blocking(move |file| triggers::arrange(file, &request, goal)).await
    }

    async fn execute(&self, arrangement: &Arrangement) -> Result<()> {
        let statements = arrangement.statements.clone();
        self.blocking(move |file| triggers::execute(file, &statements)).await
    }

    async fn count(&self, table: &TableId, filter: Option<&str>) -> Result<u64> {
        let (table, filter) = (table.clone(), filter.map(str::to_owned));
        self.blocking(move |file| {
            let database = file.open()?;
            let name = SQLITE.ident(&describe::find(file, &database, &table)?.table.id.name);
            let sql = counting(&name, filter.as_deref());
            database.query_row(&sql, [], |row| row.get::<_, i64>(0)).map_err(|error| file.error(error))
        })
        .await
        .map(i64::unsigned_abs)
    }

    async fn preflight(&self, request: &ReadRequest) -> Result<Vec<Finding>> {
        let request = request.clone();
        self.blocking(move |file| preflight(file, &request)).await
    }
}

fn preflight(file: &File, request: &ReadRequest) -> Result<Vec<Finding>> {
    if request.change == ChangeDetection::Trigger {
        return triggers::findings(file, request);
    }
    let database = file.open()?;
    let described = describe::find(file, &database, &request.table)?;
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let resolved = match resolve(request, &described) {
        Ok(resolved) => resolved,
        Err(error) => {
            find(Severity::Error, error.to_string(), error.hint_text().map(str::to_owned));
            return Ok(findings);
        }
    };
    if let Cursor::Time { column, indexed: false, .. } | Cursor::Number { column, indexed: false } =
        &resolved.cursor
    {
        let name = format!("{}_{column}", request.table.name);
        find(
            Severity::Warning,
            format!("no index begins with `{column}`, so each pass scans the table"),
            Some(format!(
                "CREATE INDEX {} ON {} ({})",
                SQLITE.ident(&name),
                SQLITE.ident(&request.table.name),
                SQLITE.ident(column)
            )),
        );
    }
    if let (Cursor::Number { column, .. }, Some((own, false))) = (&resolved.cursor, &described.row_id_column)
        && column == own
    {
        find(
            Severity::Warning,
            format!("`{column}` is not AUTOINCREMENT, so ids of deleted last rows are given again"),
            Some("use `change: full`, or a timestamp".into()),
        );
    }
    let read_only = database.is_readonly("main").map_err(|error| file.error(error))?;
    if read_only && matches!(resolved.cursor, Cursor::Time { .. }) {
        find(
            Severity::Warning,
            "the file may only be read, so writers cannot be seen and the position stays an hour behind"
                .into(),
            Some("give this user the right to write to the file; nothing is ever written".into()),
        );
    }
    Ok(findings)
}
