//! A SQL Server with one table, pretended: what the tests of the source ask, it answers from its fields.

use std::sync::{Arc, Mutex};

use arrow::array::Array;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::StreamExt;

use frazil::Error;
use frazil::connection::Connection;
use frazil::connectors;
use frazil::delta::Watermark;
use frazil::source::{ChangeDetection, ReadPlan, ReadRequest};
use frazil::table::TableId;

use tempfile::TempDir;

use crate::fixture::{self, Pipeline};
use crate::tds::{Answer, Column, Request, Server, ServerError, Type, Value};

/// What the pretended server has: one table `dbo.t`, in the words of the catalog.
#[derive(Clone)]
pub(crate) struct Shop {
    /// Name, catalog type, bytes, scale, type on the wire.
    pub(crate) columns: Vec<(&'static str, &'static str, i64, i64, Type)>,
    pub(crate) rows: Vec<Vec<Value>>,
    /// What `CHANGETABLE` answers: the columns, and 1 for a delete.
    pub(crate) changes: Vec<Vec<Value>>,
    pub(crate) tracked: bool,
    pub(crate) oldest: i64,
    pub(crate) version: i64,
    pub(crate) row_version: i64,
    pub(crate) fork: &'static str,
    /// Change Data Capture: instances (name, first position, columns), the newest first; `None` is not on.
    pub(crate) instances: Option<Vec<(&'static str, u128, Vec<&'static str>)>>,
    /// What the change tables have: the position, and a row as in `changes`.
    pub(crate) log: Vec<(u128, Vec<Value>)>,
    /// The newest position that was captured, and when it was committed, in seconds after eleven.
    pub(crate) newest: Option<(u128, i64)>,
    /// The clock, in seconds after eleven.
    pub(crate) now: i64,
    /// Object and retention in days of the history of a system-versioned table.
    pub(crate) history: Option<(i64, i64)>,
    /// A column that somebody adds when the next transaction begins.
    pub(crate) altered: Option<(&'static str, &'static str, i64, i64, Type)>,
    /// What the data statement is refused with.
    pub(crate) refused: Option<ServerError>,
}

pub(crate) struct Fake {
    pub(crate) server: Server,
    pub(crate) shop: Arc<Mutex<Shop>>,
}

impl Fake {
    pub(crate) fn new(shop: Shop) -> Self {
        let shop = Arc::new(Mutex::new(shop));
        let of_server = shop.clone();
        let server = Server::answering(move |request| of_server.lock().unwrap().answer(request));
        Self { server, shop }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Shop)) {
        change(&mut self.shop.lock().unwrap());
    }
}

/// An answer of one row of numbers.
fn numbers(values: &[Option<i64>]) -> Vec<Answer> {
    table(
        &[Type::BigInt].repeat(values.len()),
        vec![values.iter().map(|value| value.map_or(Value::Null, Value::Int)).collect()],
    )
}

fn table(types: &[Type], rows: Vec<Vec<Value>>) -> Vec<Answer> {
    let columns = types.iter().map(|of| Column { name: "c".into(), of: *of });
    vec![Answer::Rows(columns.collect(), rows)]
}

pub(crate) fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A position of the log, as the server writes it.
pub(crate) fn lsn(at: u128) -> String {
    format!("0x{at:020X}")
}

impl Shop {
    pub(crate) fn of(columns: &[(&'static str, &'static str, i64, i64, Type)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
            changes: Vec::new(),
            tracked: false,
            oldest: 0,
            version: 1,
            row_version: 100,
            fork: "fork 1",
            instances: None,
            log: Vec::new(),
            newest: None,
            now: 0,
            history: None,
            altered: None,
            refused: None,
        }
    }

    /// `id int` and `name nvarchar(20)`, with two rows.
    pub(crate) fn people() -> Self {
        let mut shop = Self::of(&[
            ("id", "int", 4, 0, Type::Int),
            ("name", "nvarchar", 40, 0, Type::NVarchar(Some(20))),
        ]);
        shop.rows = vec![vec![Value::Int(1), text("ann")], vec![Value::Int(2), text("bob")]];
        shop
    }

    fn answer(&mut self, request: &Request) -> Vec<Answer> {
        let sql = request.sql.as_str();
        let has = |part: &str| sql.contains(part);
        let name = || Type::NVarchar(Some(128));
        use Type::Int;
        if has("SERVERPROPERTY") {
            let row = vec![text("16.0.1000.6"), Value::Int(3), text("shop"), Value::Int(51)];
            return table(&[name(), Int, name(), Int], vec![row]);
        }
        if has("FROM sys.objects o JOIN sys.schemas") {
            let row = vec![
                Value::Int(42),
                text("dbo"),
                text("t"),
                text("U"),
                Value::Int(2),
                Value::Int(8192),
                Value::Int(1),
                Value::Int(self.tracked.into()),
                Value::Int(self.instances.is_some().into()),
                Value::Int(if self.history.is_some() { 2 } else { 0 }),
            ];
            let types = [Int, name(), name(), name(), Type::BigInt, Type::BigInt, Int, Int, Int, Int];
            return table(&types, vec![row]);
        }
        if has("FROM sys.columns c JOIN") {
            let rows = self.columns.iter().enumerate().map(|(at, (column, of, bytes, scale, _))| {
                let key = at == 0;
                let precision = if *of == "decimal" { 38 } else { 53 };
                let mut row =
                    vec![Value::Int(42), Value::Int(at as i64 + 1), text(column), text(of), text(of)];
                row.extend([*bytes, precision, *scale, i64::from(!key), 0, 0].map(Value::Int));
                row.push(Value::Int(1252));
                row
            });
            let types = [Int, Int, name(), name(), name(), Int, Int, Int, Int, Int, Int, Int];
            return table(&types, rows.collect());
        }
        if has("FROM sys.indexes i") {
            let row = vec![
                Value::Int(42),
                text("PK_t"),
                Value::Int(1),
                Value::Int(1),
                Value::Int(0),
                Value::Int(1),
                text(self.columns[0].0),
            ];
            return table(&[Int, name(), Int, Int, Int, Int, name()], vec![row]);
        }
        match sql {
            _ if has("snapshot_isolation_state") => table(&[Int], vec![vec![Value::Int(1)]]),
            _ if has("recovery_fork_guid") => table(&[name()], vec![vec![text(self.fork)]]),
            _ if has("SYSUTCDATETIME()") => {
                // 2025-11-21, 12:00, on a server that lives in UTC.
                let noon = Value::DateTime2(739_575, 432_000_000_000);
                table(&[Type::DateTime2(7), Int, Int], vec![vec![noon, Value::Int(0), Value::Int(0)]])
            }
            _ if has("dm_tran_active_transactions") => table(&[Type::DateTime, Int], Vec::new()),
            _ if has("MIN_ACTIVE_ROWVERSION") => numbers(&[Some(self.row_version)]),
            _ if has("CHANGE_TRACKING_MIN_VALID_VERSION") => {
                numbers(&[Some(self.oldest), Some(self.version)])
            }
            _ if has("SELECT TOP (1) 1 FROM CHANGETABLE") => {
                let any = self.changes.iter().take(1).map(|_| vec![Value::Int(1)]);
                table(&[Int], any.collect())
            }
            _ if has("cdc.change_tables") => self.captures(),
            _ if has("fn_cdc_get_max_lsn") => {
                let moment = |seconds: i64| Value::DateTime(45_980, (11 * 3600 + seconds) as u32 * 300);
                let (newest, at) = self
                    .newest
                    .map_or((Value::Null, Value::Null), |(newest, at)| (text(&lsn(newest)), moment(at)));
                table(&[name(), Type::DateTime, Type::DateTime], vec![vec![newest, at, moment(self.now)]])
            }
            _ if has("FROM [cdc].[") => self.captured(sql),
            _ if has("t.history_table_id") => {
                let row = self.history.map(|(object, days)| {
                    let mut row = vec![Value::Int(object)];
                    row.extend(["dbo", "t_history", "begins", "ends"].map(text));
                    row.extend([7, days, 3].map(Value::Int));
                    row
                });
                let types = [Int, name(), name(), name(), name(), Int, Int, Int];
                table(&types, row.into_iter().collect())
            }
            _ if has("FROM [dbo].[t_history]") => self.data(&self.changes, Some(Int)),
            _ if has("[frazil place]") => table(&[name(), Type::BigInt], Vec::new()),
            _ if has("FROM CHANGETABLE(CHANGES") => self.data(&self.changes, Some(Int)),
            _ if has("FROM [dbo].[t]") => match &self.refused {
                Some(error) => vec![Answer::Error(error.clone())],
                None => self.data(&self.rows, None),
            },
            _ if has("BEGIN TRANSACTION") => {
                self.columns.extend(self.altered.take());
                vec![Answer::Began]
            }
            _ if has("COMMIT TRANSACTION") => vec![Answer::Committed],
            _ => Vec::new(),
        }
    }

    fn captures(&self) -> Vec<Answer> {
        let name = || Type::NVarchar(Some(128));
        let rows = self.instances.iter().flatten().flat_map(|(instance, start, columns)| {
            columns.iter().map(move |column| {
                vec![text(instance), text(&format!("{instance}_CT")), text(&lsn(*start)), text(column)]
            })
        });
        table(&[name(), name(), name(), name()], rows.collect())
    }

    /// What a change table has between the two bounds of a statement.
    fn captured(&self, sql: &str) -> Vec<Answer> {
        let bound = |before: &str| {
            let (_, rest) = sql.split_once(before).unwrap();
            u128::from_str_radix(&rest[2..22], 16).unwrap()
        };
        let (after, to) = (bound("[__$start_lsn] > "), bound("[__$start_lsn] <= "));
        let found = self.log.iter().filter(|(at, _)| *at > after && *at <= to);
        if sql.starts_with("SELECT TOP (1) 1") {
            return table(&[Type::Int], found.take(1).map(|_| vec![Value::Int(1)]).collect());
        }
        self.data(&found.map(|(_, row)| row.clone()).collect::<Vec<_>>(), Some(Type::Int))
    }

    fn data(&self, rows: &[Vec<Value>], more: Option<Type>) -> Vec<Answer> {
        let types: Vec<_> = self.columns.iter().map(|column| column.4).chain(more).collect();
        table(&types, rows.to_vec())
    }
}

/// From the responder's table `t` by way of a lake into SQLite, by the program itself.
pub(crate) struct Way {
    folder: TempDir,
    pipeline: Pipeline,
}

impl Way {
    pub(crate) fn new(fake: &Fake, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
        let pipeline = Pipeline::new(&fake.server.url(), &target, &[&format!("dbo.t: {{ {settings} }}")]);
        Self { folder, pipeline }
    }

    /// What the other end has after one more pass.
    pub(crate) fn pass(&self) -> Vec<String> {
        self.pipeline.ok(&["run"]);
        let dwh = rusqlite::Connection::open(self.folder.path().join("dwh.db")).unwrap();
        let mut query = dwh.prepare("select id || ' ' || name from t order by id").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

pub(crate) fn request(change: ChangeDetection) -> ReadRequest {
    fixture::read_request(TableId::new("dbo", "t"), change)
}

/// What one pass gave: its plan, its rows as text, and where it ended.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) plan: ReadPlan,
    pub(crate) rows: Vec<String>,
    pub(crate) resume: Watermark,
}

pub(crate) async fn read(url: &str, request: ReadRequest) -> Result<Pass, Error> {
    let source = connectors::source(&Connection::parse("shop", url)?)?;
    let mut reading = source.open(request).await?;
    let (mut rows, mut resume) = (Vec::new(), None);
    while let Some(portion) = reading.next().await? {
        for mut stream in portion.streams {
            while let Some(batch) = stream.next().await {
                let batch = batch?;
                let options = FormatOptions::default().with_null("NULL");
                let columns: Vec<_> = batch
                    .columns()
                    .iter()
                    .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
                    .collect();
                rows.extend((0..batch.num_rows()).map(|row| {
                    columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ")
                }));
                assert!(batch.columns().iter().all(|column| column.len() == batch.num_rows()));
            }
        }
        resume = Some(portion.resume);
    }
    Ok(Pass { plan: reading.plan().clone(), rows, resume: resume.unwrap() })
}
