//! Writes changes into a table that others write to as well, with an eye on what they changed.
//!
//! ```text
//! rows ─▶ temp.frazil_staging ─▶ compare ─▶ touched by others ─▶ leave, or mix ─▶ out of the staging table
//!                                     └───▶ all others ────────▶ deleted and upserted, all at once
//! ```
//!
//! The staging table's columns have the affinities of the target's, so each value is what the table would
//! hold. The transaction holds the write lock of the file: nobody changes anything in between.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Int8Type};
use rusqlite::types::ValueRef;
use rusqlite::{Connection as Database, Statement, params};

use super::encode::Cells;
use super::shape;
use super::write::{execute, names, on_conflict, refused_error, written};
use crate::clients::sqlite::File;
use crate::connectors::sql::{Comparison, DELETED_AT, Plan, SQLITE, Sides};
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::table::{HAS_BASE, KEY_TEXT, base_column};
use crate::target::{Conflicts, Deletes, FoundConflict, MergeStats, TargetTable};

/// Rows that are decided about at a time.
const AT_A_TIME: usize = 5_000;
/// Where rows wait.
const STAGING: &str = "temp.frazil_staging";

/// A load of one table.
pub(super) struct Beside<'a> {
    file: &'a File,
    database: &'a Database,
    table: &'a TargetTable,
    conflicts: &'a dyn Conflicts,
    fields: Vec<FieldRef>,
    key: Vec<FieldRef>,
    insert: Statement<'a>,
    stats: MergeStats,
    scratch: String,
}

impl<'a> Beside<'a> {
    /// Makes the staging table.
    pub(super) fn new(
        file: &'a File,
        database: &'a Database,
        table: &'a TargetTable,
        conflicts: &'a dyn Conflicts,
    ) -> Result<Self> {
        let failed = |error| file.error(error).with("table", &table.id);
        let (fields, key) = written(file, database, table)?;
        let columns = |letter: char| {
            let column = move |(place, field): (usize, &FieldRef)| {
                format!("{} AS {letter}{place}", SQLITE.ident(field.name()))
            };
            fields.iter().enumerate().map(column).collect::<Vec<_>>().join(", ")
        };
        let name = SQLITE.ident(&shape::local(&table.id));
        let create = format!(
            "CREATE TEMP TABLE frazil_staging AS SELECT {}, {}, '' AS key, 0 AS b, 0 AS op FROM {name} WHERE 0",
            columns('c'),
            columns('b')
        );
        database.execute_batch(&create).map_err(failed)?;
        let places: Vec<_> = (1..=2 * fields.len() + 3).map(|at| format!("?{at}")).collect();
        let insert = database
            .prepare(&format!("INSERT INTO {STAGING} VALUES ({})", places.join(", ")))
            .map_err(failed)?;
        let stats = MergeStats::default();
        Ok(Self { file, database, table, conflicts, fields, key, insert, stats, scratch: String::new() })
    }

    /// Stages a batch, each row with what it was before.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let older =
            self.fields.iter().map(|field| field.as_ref().clone().with_name(base_column(field.name())));
        let marks =
            [Field::new(KEY_TEXT, DataType::Utf8, false), Field::new(HAS_BASE, DataType::Int32, false)];
        let own = self.fields.iter().map(|field| field.as_ref().clone());
        let fields: Vec<Field> = own.chain(older).chain(marks).collect();
        let mut cells = fields.iter().map(|field| Cells::of(batch, field)).collect::<Result<Vec<_>>>()?;
        let ops = batch.columns().last().and_then(|column| column.as_primitive_opt::<Int8Type>());
        let ops =
            ops.ok_or_else(|| Error::new(ErrorKind::Internal, "a change does not say what happened"))?;
        cells.push(Cells::Integer(ops.iter().map(|op| op.map(i64::from)).collect()));
        for row in 0..batch.num_rows() {
            execute(&mut self.insert, &cells, row, &mut self.scratch)
                .map_err(|error| refused_error(self.file, self.table, error))?;
        }
        self.stats.staged += batch.num_rows() as u64;
        Ok(())
    }

    /// Brings what is staged into the table, without writing over what others did unless the rules say so.
    pub(super) fn finish(mut self) -> Result<MergeStats> {
        self.heed_others()?;
        if let Some(delete) = self.delete() {
            self.stats.deleted = self.run(&delete)?;
        }
        let upsert = format!(
            "INSERT INTO {} ({}) SELECT {} FROM {STAGING} AS s WHERE s.op = {} ORDER BY s.rowid {}",
            self.name(),
            SQLITE.list(names(&self.fields)),
            (0..self.fields.len()).map(|place| format!("s.c{place}")).collect::<Vec<_>>().join(", "),
            Op::Upsert as i8,
            on_conflict(&shape::local(&self.table.id), &self.fields, &self.table.key, self.table.deletes)
        );
        self.stats.upserted += self.run(&upsert)?;
        Ok(self.stats)
    }

    /// Decides about all rows that somebody else touched; what is left to write of the others stays staged.
    fn heed_others(&mut self) -> Result<()> {
        let plain = self.plain();
        let names: Vec<&str> = plain.iter().map(|place| self.fields[*place].name().as_str()).collect();
        let rules = self.conflicts.rules();
        let last_write = Plan::last_write(rules, &self.table.id, &names)?;
        let compare =
            format!("{} AND s.rowid > ?1 ORDER BY s.rowid LIMIT {AT_A_TIME}", self.compare(last_write));
        let mut compare = self.database.prepare(&compare).map_err(|error| self.failed(error))?;
        let mut after = 0;
        loop {
            let met = compare.query_map([after], |row| Ok((row.get(0)?, row.get(1)?)));
            let met: Vec<(i64, String)> =
                met.and_then(Iterator::collect).map_err(|error| self.failed(error))?;
            let Some((last, _)) = met.last() else { return Ok(()) };
            after = *last;
            let plan = Plan::of(rules, &names, met.into_iter().map(Ok))?;
            self.stats.upserted += self.follow(&plan, &names).map_err(|error| self.failed(error))??;
        }
    }

    /// What is to be done with rows that others touched.
    fn follow(&self, plan: &Plan, names: &[&str]) -> rusqlite::Result<Result<u64>> {
        let mut rows = self.database.prepare_cached(&self.clash())?;
        let mut found = Vec::new();
        for (number, (kind, fields)) in &plan.clashes {
            let fields = fields.iter().map(|(place, resolution)| (names[*place].to_owned(), *resolution));
            let fields = fields.collect();
            found.push(rows.query_row([number], |row| {
                let width = self.fields.len();
                let side = |from: usize| self.json(row, from);
                let exists = |mark: usize| row.get::<_, bool>(3 * width + mark);
                Ok(FoundConflict {
                    kind: *kind,
                    key: row.get(3 * width + 3)?,
                    fields,
                    source: exists(0)?.then(|| side(0)).transpose()?,
                    base: exists(1)?.then(|| side(width)).transpose()?,
                    target: exists(2)?.then(|| side(2 * width)).transpose()?,
                })
            })?);
        }
        if !found.is_empty()
            && let Err(error) = self.conflicts.found(found)
        {
            return Ok(Err(error));
        }
        let mut written = 0;
        if !plan.mix.is_empty() {
            let mut mix = self.database.prepare_cached(&self.mix())?;
            for (number, kept) in &plan.mix {
                written += mix.execute(params![number, kept])? as u64;
            }
        }
        let mut forget = self.database.prepare_cached(&format!("DELETE FROM {STAGING} WHERE rowid = ?1"))?;
        for number in plan.leave.iter().chain(plan.mix.iter().map(|(number, _)| number)) {
            forget.execute([number])?;
        }
        Ok(Ok(written))
    }

    fn compare(&self, last_write: Option<usize>) -> String {
        let sides = self.plain().into_iter().map(|place| Sides {
            base: format!("s.b{place}"),
            source: format!("s.c{place}"),
            target: format!("t.{}", SQLITE.ident(self.fields[place].name())),
        });
        let comparison = Comparison {
            dialect: &SQLITE,
            from: self.joined(),
            there: self.there(),
            number: "s.rowid",
            sides: sides.collect(),
            last_write,
            deletes: self.table.deletes,
            differ: &|_, a, b| format!("{a} IS NOT {b} COLLATE BINARY"),
        };
        comparison.statement()
    }

    /// The source's values of a staged row, those from before, those of the table, and which of them exist.
    fn clash(&self) -> String {
        let each =
            |of: &dyn Fn(usize) -> String| (0..self.fields.len()).map(of).collect::<Vec<_>>().join(", ");
        format!(
            "SELECT {}, {}, {}, s.op = 0, s.b = 1, {}, s.key {} WHERE s.rowid = ?1",
            each(&|place| format!("s.c{place}")),
            each(&|place| format!("s.b{place}")),
            each(&|place| format!("t.{}", SQLITE.ident(self.fields[place].name()))),
            self.there(),
            self.joined()
        )
    }

    fn mix(&self) -> String {
        let sets = self.plain().into_iter().enumerate().map(|(mark, place)| {
            let name = SQLITE.ident(self.fields[place].name());
            format!("{name} = CASE WHEN substr(?2, {}, 1) = '1' THEN t.{name} ELSE s.c{place} END", mark + 1)
        });
        format!(
            "UPDATE {} AS t SET {} FROM {STAGING} AS s WHERE s.rowid = ?1 AND {}",
            self.name(),
            sets.collect::<Vec<_>>().join(", "),
            self.by_key()
        )
    }

    fn delete(&self) -> Option<String> {
        let name = self.name();
        let keys: Vec<_> = self.key_places().iter().map(|place| format!("s.c{place}")).collect();
        let gone = format!(
            "({}) IN (SELECT {} FROM {STAGING} AS s WHERE s.op = {})",
            SQLITE.list(&self.table.key),
            keys.join(", "),
            Op::Delete as i8
        );
        match self.table.deletes {
            Deletes::Hard => Some(format!("DELETE FROM {name} WHERE {gone}")),
            Deletes::Soft => {
                let column = SQLITE.ident(DELETED_AT);
                let now = "strftime('%Y-%m-%d %H:%M:%f', 'now')";
                Some(format!("UPDATE {name} SET {column} = {now} WHERE {gone} AND {column} IS NULL"))
            }
            Deletes::Ignore => None,
        }
    }

    fn joined(&self) -> String {
        format!("FROM {STAGING} AS s LEFT JOIN {} AS t ON {}", self.name(), self.by_key())
    }

    /// A row that is marked as deleted is none.
    fn there(&self) -> String {
        let there = format!("t.{} IS NOT NULL", SQLITE.ident(self.key[0].name()));
        match self.table.deletes {
            Deletes::Soft => format!("{there} AND t.{} IS NULL", SQLITE.ident(DELETED_AT)),
            Deletes::Hard | Deletes::Ignore => there,
        }
    }

    fn by_key(&self) -> String {
        let places = self.key_places();
        let same = self.key.iter().zip(&places);
        let same = same.map(|(field, place)| format!("t.{} = s.c{place}", SQLITE.ident(field.name())));
        same.collect::<Vec<_>>().join(" AND ")
    }

    fn key_places(&self) -> Vec<usize> {
        let place = |key: &FieldRef| self.fields.iter().position(|field| field.name() == key.name());
        self.key.iter().filter_map(place).collect()
    }

    /// The places of columns that are no key.
    fn plain(&self) -> Vec<usize> {
        let key = self.key_places();
        (0..self.fields.len()).filter(|place| !key.contains(place)).collect()
    }

    fn name(&self) -> String {
        SQLITE.ident(&shape::local(&self.table.id))
    }

    fn run(&self, statement: &str) -> Result<u64> {
        tracing::debug!(table = %self.table.id, statement, "changes a target table");
        self.database.execute(statement, []).map(|rows| rows as u64).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: rusqlite::Error) -> Error {
        refused_error(self.file, self.table, error)
    }

    /// The columns of a side that begins at a place of the row, as a JSON object.
    fn json(&self, row: &rusqlite::Row<'_>, from: usize) -> rusqlite::Result<String> {
        let mut object = serde_json::Map::new();
        for (place, field) in self.fields.iter().enumerate() {
            object.insert(field.name().clone(), value(row.get_ref(from + place)?));
        }
        Ok(serde_json::Value::Object(object).to_string())
    }
}

fn value(value: ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::Null => serde_json::Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => match serde_json::Number::from_f64(number) {
            Some(number) => serde_json::Value::Number(number),
            None => number.to_string().into(),
        },
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
    }
}
