//! SQL over the lake, at any of its snapshots. Read-only.
//!
//! ```text
//! select * from orders version as of 42        ┐            ┌─▶ provider at a snapshot
//! select * from orders timestamp as of '…'     ├─ rewritten ┤
//! select * from changes('orders', 42, 43)      ┘ to names   ├─▶ delta between two snapshots
//! select * from "orders$snapshots"                          └─▶ what the metadata says
//! ```
//!
//! A table is `schema.table`, or `table` where only one schema has it. Tables are loaded when a
//! statement names them, each at the state it has at that moment. Nothing is collected: the result
//! is a stream, within the memory budget.

mod as_of;
mod changes;
mod decimals;
mod export;
mod metadata;
mod syntax;
mod tables;

use std::sync::Arc;

use datafusion::execution::{FunctionRegistry, SessionStateBuilder};
use datafusion::prelude::{DataFrame, SQLOptions, SessionContext};
use datafusion::sql::parser::Statement;

pub use as_of::{AsOf, Together};
pub use export::{Export, Format};
pub use syntax::statements;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::memory::Budget;
use crate::merge;

/// The name under which the lake stands in three-part names: `lake.schema.table`.
const CATALOG: &str = "lake";

/// A session in which the lake's tables can be named. Without another word in the statement they are
/// read `as_of`, or as they are now. Statements go through [`sql`].
pub async fn session(lake: &Lake, budget: Budget, as_of: Option<AsOf>) -> Result<SessionContext> {
    let catalog = tables::LakeCatalog::new(lake, as_of).await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let config = merge::config()
        .with_target_partitions(budget.query_streams(cores))
        .with_default_catalog_and_schema(CATALOG, tables::ANY_SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(merge::runtime(budget, lake.stores())?)
        .with_default_features()
        .build();
    let session = SessionContext::new_with_state(state);
    session.state_ref().write().register_expr_planner(Arc::new(decimals::Decimals))?;
    session.register_catalog(CATALOG, Arc::new(catalog));
    Ok(session)
}

/// Plans one statement. Only statements that read are let through. Run the result with
/// [`DataFrame::execute_stream`].
pub async fn sql(session: &SessionContext, text: &str) -> Result<DataFrame> {
    let text = syntax::rewrite(text)?;
    let state = session.state();
    let statement = state.sql_to_statement(&text, &state.config_options().sql_parser.dialect)?;
    if !reads(&statement) {
        return Err(only_reading());
    }
    let plan = state.statement_to_plan(statement).await?;
    let read_only =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    read_only.verify_plan(&plan).map_err(|_| only_reading())?;
    Ok(session.execute_logical_plan(plan).await?)
}

/// Whether a statement can be one that reads; what is within it is judged by its plan.
fn reads(statement: &Statement) -> bool {
    use datafusion::sql::sqlparser::ast::Statement as Sql;
    match statement {
        Statement::Statement(statement) => matches!(
            statement.as_ref(),
            Sql::Query(_)
                | Sql::Explain { .. }
                | Sql::ExplainTable { .. }
                | Sql::ShowTables { .. }
                | Sql::ShowColumns { .. }
                | Sql::ShowFunctions { .. }
                | Sql::ShowVariable { .. }
        ),
        Statement::Explain(_) => true,
        _ => false,
    }
}

fn only_reading() -> Error {
    Error::new(ErrorKind::Config, "the statement does not only read")
        .hint("the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here")
}
