//! Rows of several tables with one key, as one table: each column from the first that has the row.
//!
//! ```text
//! keys that changed ─┬─◁ rows of the first  ─┐
//!                    ├─◁ rows of the second ─┼─▶ column by column: who has it, goes first ─▶ row
//!                    └─◁ …                  ─┘         nobody has the key any more        ─▶ delete
//! ```
//!
//! What comes out depends on the tables alone, not on what changed in them and in which order.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{JoinType, ScalarValue};
use datafusion::error::Result as DFResult;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{cast, when};
use datafusion::prelude::{DataFrame, Expr, SessionContext, ident, lit};

use super::{LOAD_PARTITIONS, SORTED_BATCH_ROWS, config};
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::table::OP_COLUMN;

/// Changed keys up to which they are held in memory, to find the rows of theirs; of more, both sides are
/// sorted, which spills.
const FEW: u64 = 100_000;

/// Tables with one key, the first of them first.
#[derive(Clone)]
pub struct BySource {
    /// Their rows, each key once.
    pub sides: Vec<Arc<dyn TableProvider>>,
    /// The columns that come out; those of the key are among them.
    pub columns: Vec<SharedColumn>,
    /// The key's columns.
    pub key: Vec<String>,
    /// Only these of their rows, by a condition on the key.
    pub only: Option<Expr>,
}

/// A column that comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedColumn {
    /// Its name and type.
    pub field: FieldRef,
    /// The sides that have it, by their places; the first that has a row gives the value.
    pub from: Vec<usize>,
}

impl BySource {
    /// What became of the keys in `changed`: the columns and `_op`, sorted by key. `rows` is about how many.
    pub async fn of_changed(
        &self,
        changed: Arc<dyn TableProvider>,
        rows: u64,
        runtime: Arc<RuntimeEnv>,
    ) -> Result<SendableRecordBatchStream> {
        let session = session(rows <= FEW, runtime);
        let keys = self.keys(session.read_table(changed)?)?;
        Ok(self.rows_of(&session, keys)?.execute_stream().await?)
    }

    /// All rows that any of them has, as upserts sorted by key.
    pub async fn all(&self, runtime: Arc<RuntimeEnv>) -> Result<SendableRecordBatchStream> {
        let session = session(false, runtime);
        let mut keys: Option<DataFrame> = None;
        for side in &self.sides {
            let more = self.keys(self.side(&session, side)?)?;
            keys = Some(match keys {
                None => more,
                Some(keys) => keys.union(more)?,
            });
        }
        let keys = keys.ok_or_else(|| Error::new(ErrorKind::Internal, "a table of no sources"))?;
        Ok(self.rows_of(&session, keys)?.execute_stream().await?)
    }

    fn side(&self, session: &SessionContext, side: &Arc<dyn TableProvider>) -> DFResult<DataFrame> {
        let rows = session.read_table(side.clone())?;
        match &self.only {
            Some(only) => rows.filter(only.clone()),
            None => Ok(rows),
        }
    }

    fn keys(&self, rows: DataFrame) -> DFResult<DataFrame> {
        rows.select(self.key_exprs("_k"))
    }

    fn rows_of(&self, session: &SessionContext, keys: DataFrame) -> Result<DataFrame> {
        let ours: Vec<String> = (0..self.key.len()).map(|place| format!("_k{place}")).collect();
        let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        let mut rows = keys.distinct()?;
        for (at, side) in self.sides.iter().enumerate() {
            let mut exprs = self.key_exprs(&format!("_s{at}_k"));
            exprs.push(lit(true).alias(there(at)));
            for (place, column) in self.columns.iter().enumerate() {
                if column.from.contains(&at) {
                    let value = cast(ident(column.field.name()), column.field.data_type().clone());
                    exprs.push(value.alias(value_of(at, place)));
                }
            }
            let theirs: Vec<String> = (0..self.key.len()).map(|place| format!("_s{at}_k{place}")).collect();
            let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
            let side = self.side(session, side)?.select(exprs)?;
            rows = rows.join(side, JoinType::Left, &ours, &theirs, None)?;
        }
        let mut columns = Vec::new();
        for (place, column) in self.columns.iter().enumerate() {
            let name = column.field.name();
            columns.push(match self.key.iter().position(|key| key == name) {
                Some(key) => ident(format!("_k{key}")).alias(name),
                None => first_of(&column.from, place, column.field.data_type())?.alias(name),
            });
        }
        let anybody = (0..self.sides.len()).map(|at| ident(there(at)).is_true()).reduce(Expr::or);
        let anybody = anybody.ok_or_else(|| Error::new(ErrorKind::Internal, "a table of no sources"))?;
        let op = when(anybody, lit(Op::Upsert as i8)).otherwise(lit(Op::Delete as i8))?;
        columns.push(op.alias(OP_COLUMN));
        let order = ours.iter().map(|key| ident(*key).sort(true, true)).collect();
        Ok(rows.sort(order)?.select(columns)?)
    }

    /// The key's columns, by names of ours: a prefix and their place.
    fn key_exprs(&self, prefix: &str) -> Vec<Expr> {
        let expr = |(place, key): (usize, &String)| {
            let column = self.columns.iter().find(|column| column.field.name() == key);
            let data_type = column.map_or(DataType::Null, |column| column.field.data_type().clone());
            cast(ident(key), data_type).alias(format!("{prefix}{place}"))
        };
        self.key.iter().enumerate().map(expr).collect()
    }
}

fn session(few: bool, runtime: Arc<RuntimeEnv>) -> SessionContext {
    let mut config = config()
        .with_target_partitions(LOAD_PARTITIONS)
        .with_batch_size(SORTED_BATCH_ROWS)
        .with_repartition_sorts(false);
    config.options_mut().optimizer.prefer_hash_join = few;
    SessionContext::new_with_config_rt(config, runtime)
}

fn there(side: usize) -> String {
    format!("_s{side}")
}

fn value_of(side: usize, column: usize) -> String {
    format!("_s{side}_c{column}")
}

/// The value of the first side that has the row.
fn first_of(from: &[usize], column: usize, data_type: &DataType) -> DFResult<Expr> {
    let mut sides = from.iter();
    let Some(first) = sides.next() else { return Ok(lit(ScalarValue::try_new_null(data_type)?)) };
    let mut case = when(ident(there(*first)).is_true(), ident(value_of(*first, column)));
    for side in sides {
        case = case.when(ident(there(*side)).is_true(), ident(value_of(*side, column)));
    }
    case.end()
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
    use arrow::datatypes::{Field, Schema};
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::datasource::MemTable;
    use expect_test::expect;
    use futures::TryStreamExt;

    use super::*;

    fn table(columns: Vec<(&str, ArrayRef)>) -> Arc<dyn TableProvider> {
        let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(schema.clone(), arrays).unwrap();
        Arc::new(MemTable::try_new(schema, vec![vec![batch]]).unwrap())
    }

    fn texts(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn two() -> BySource {
        let crm = table(vec![
            ("Id", Arc::new(Int32Array::from(vec![1, 2, 3]))),
            ("mail", texts(&[Some("crm1"), None, Some("crm3")])),
            ("status", texts(&[Some("crm1"), Some("crm2"), Some("crm3")])),
        ]);
        let shop = table(vec![
            ("Id", Arc::new(Int64Array::from(vec![2, 3, 4]))),
            ("mail", texts(&[Some("shop2"), Some("shop3"), Some("shop4")])),
            ("status", texts(&[Some("shop2"), None, Some("shop4")])),
            ("orders", Arc::new(Int32Array::from(vec![20, 30, 40]))),
        ]);
        let column = |name: &str, data_type, from: &[usize]| SharedColumn {
            field: Arc::new(Field::new(name, data_type, true)),
            from: from.to_vec(),
        };
        BySource {
            sides: vec![crm, shop],
            columns: vec![
                column("Id", DataType::Int64, &[0, 1]),
                column("mail", DataType::Utf8, &[0, 1]),
                column("status", DataType::Utf8, &[1, 0]),
                column("orders", DataType::Int32, &[1]),
            ],
            key: vec!["Id".to_owned()],
            only: None,
        }
    }

    async fn text(rows: Result<SendableRecordBatchStream>) -> String {
        let rows: Vec<RecordBatch> = rows.unwrap().try_collect().await.unwrap();
        pretty_format_batches(&rows).unwrap().to_string()
    }

    #[tokio::test]
    async fn each_column_comes_from_the_first_that_has_the_row() {
        expect![[r#"
            +----+-------+--------+--------+-----+
            | Id | mail  | status | orders | _op |
            +----+-------+--------+--------+-----+
            | 1  | crm1  | crm1   |        | 0   |
            | 2  |       | shop2  | 20     | 0   |
            | 3  | crm3  |        | 30     | 0   |
            | 4  | shop4 | shop4  | 40     | 0   |
            +----+-------+--------+--------+-----+"#]]
        .assert_eq(&text(two().all(Arc::default()).await).await);
    }

    #[tokio::test]
    async fn a_key_that_nobody_has_any_more_goes() {
        let changed =
            || table(vec![("x", texts(&[None; 4])), ("Id", Arc::new(Int32Array::from(vec![9, 2, 4, 2])))]);
        let few = text(two().of_changed(changed(), 4, Arc::default()).await).await;
        expect![[r#"
            +----+-------+--------+--------+-----+
            | Id | mail  | status | orders | _op |
            +----+-------+--------+--------+-----+
            | 2  |       | shop2  | 20     | 0   |
            | 4  | shop4 | shop4  | 40     | 0   |
            | 9  |       |        |        | 1   |
            +----+-------+--------+--------+-----+"#]]
        .assert_eq(&few);
        assert_eq!(text(two().of_changed(changed(), u64::MAX, Arc::default()).await).await, few);
    }
}
