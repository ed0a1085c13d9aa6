//! Writes changes into a table, row by row, in a transaction that somebody else ends.
//!
//! A statement that fails changes nothing and leaves the transaction as it was: so rows that are refused
//! can be left out one by one.

use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{FieldRef, Int8Type};
use rusqlite::{Connection as Database, ErrorCode, Statement};

use super::encode::Cells;
use super::shape::{self, no_versions};
use crate::clients::sqlite::File;
use crate::connectors::sql::{DELETED_AT, SQLITE};
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::target::{Deletes, LETTER_COLUMN, MergeStats, Refusals, Refused, Strategy, TargetTable};

/// Statements for one table, prepared once.
pub(super) struct Writer<'a> {
    file: &'a File,
    database: &'a Database,
    table: &'a TargetTable,
    strategy: Strategy,
    fields: Vec<FieldRef>,
    key: Vec<FieldRef>,
    upsert: Statement<'a>,
    delete: Option<Statement<'a>>,
    stats: MergeStats,
    scratch: String,
    refusals: Option<&'a dyn Refusals>,
    /// Rows that were refused, each a batch of its own, and why.
    refused: Vec<(RecordBatch, String)>,
}

impl<'a> Writer<'a> {
    /// Prepares the statements; for a replacement, also empties the table.
    pub(super) fn new(
        file: &'a File,
        database: &'a Database,
        table: &'a TargetTable,
        strategy: Strategy,
        refusals: Option<&'a dyn Refusals>,
    ) -> Result<Self> {
        let failed = |error| file.error(error).with("table", &table.id);
        let name = shape::local(&table.id);
        let (fields, key) = written(file, database, table)?;
        if strategy == Strategy::Merge && key.is_empty() {
            return Err(Error::new(ErrorKind::Internal, "a merge needs a key").with("table", &table.id));
        }
        if strategy == Strategy::Replace {
            database.execute(&format!("DELETE FROM {}", SQLITE.ident(&name)), []).map_err(failed)?;
        }
        let upsert = match strategy {
            Strategy::Merge => upsert_sql(&name, &fields, &table.key, table.deletes),
            Strategy::Append | Strategy::Replace => insert_sql(&name, &fields),
            Strategy::Versions { .. } => return Err(no_versions().with("table", &table.id)),
        };
        let delete = match (strategy, table.deletes) {
            (Strategy::Merge, Deletes::Hard | Deletes::Soft) => {
                Some(database.prepare(&delete_sql(&name, &table.key, table.deletes)).map_err(failed)?)
            }
            _ => None,
        };
        let upsert = database.prepare(&upsert).map_err(failed)?;
        Ok(Self {
            file,
            database,
            table,
            strategy,
            fields,
            key,
            upsert,
            delete,
            stats: MergeStats::default(),
            scratch: String::new(),
            refusals,
            refused: Vec::new(),
        })
    }

    /// Writes a batch: the table's columns and, at its end, what happened to each row.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        for (row, error) in self.rows(batch)? {
            let refused = take_record_batch(batch, &UInt32Array::from(vec![row as u32]))?;
            let reason = refused_error(self.file, self.table, error).to_string();
            if let Some(refusals) = self.refusals {
                refusals.note(&reason)?;
            }
            self.refused.push((refused, reason));
        }
        self.stats.staged += batch.num_rows() as u64;
        Ok(())
    }

    /// Rows that are refused now that all others are written: some may have waited for a value that another
    /// row gave up later.
    pub(super) fn refused(&mut self) -> Result<Vec<Refused>> {
        loop {
            let (before, mut left) = (self.refused.len(), Vec::new());
            for (row, reason) in std::mem::take(&mut self.refused) {
                if !self.rows(&row)?.is_empty() {
                    left.push((row, reason));
                }
            }
            self.refused = left;
            if self.refused.len() == before {
                break;
            }
        }
        let letter = |row: &RecordBatch| {
            let letter = row.column_by_name(LETTER_COLUMN).and_then(|column| column.as_string_opt::<i32>());
            letter
                .map(|letter| letter.value(0).to_owned())
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a change does not say all of its rows"))
        };
        let refused = std::mem::take(&mut self.refused);
        refused.into_iter().map(|(row, reason)| Ok(Refused { letter: letter(&row)?, reason })).collect()
    }

    /// Writes rows; those that may be left out and are refused come back.
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<(usize, rusqlite::Error)>> {
        let ops = batch
            .columns()
            .last()
            .and_then(|column| column.as_primitive_opt::<Int8Type>())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a change does not say what happened"))?;
        let cells = self.fields.iter().map(|field| Cells::of(batch, field)).collect::<Result<Vec<_>>>()?;
        let key = self.key.iter().map(|field| Cells::of(batch, field)).collect::<Result<Vec<_>>>()?;
        let mut refused = Vec::new();
        for row in 0..batch.num_rows() {
            let deleted = self.strategy != Strategy::Append && ops.value(row) == Op::Delete as i8;
            let (cells, count, statement) = match (deleted, &mut self.delete) {
                (false, _) => (&cells, &mut self.stats.upserted, &mut self.upsert),
                (true, Some(delete)) => (&key, &mut self.stats.deleted, delete),
                (true, None) => continue,
            };
            match execute(statement, cells, row, &mut self.scratch) {
                Ok(rows) => *count += rows,
                // A trigger may have rolled the transaction back: then nothing of it is left to go on with.
                Err(error)
                    if self.refusals.is_some() && is_of_the_row(&error) && !self.database.is_autocommit() =>
                {
                    refused.push((row, error));
                }
                Err(error) => return Err(refused_error(self.file, self.table, error)),
            }
        }
        Ok(refused)
    }

    /// What was done.
    pub(super) fn stats(&self) -> MergeStats {
        self.stats
    }
}

/// The columns that are written, and those of the key.
pub(super) fn written(
    file: &File,
    database: &Database,
    table: &TargetTable,
) -> Result<(Vec<FieldRef>, Vec<FieldRef>)> {
    let generated: Vec<String> = shape::present(database, &shape::local(&table.id))
        .map_err(|error| file.error(error).with("table", &table.id))?
        .into_iter()
        .filter(|column| column.generated)
        .map(|column| column.name)
        .collect();
    let fields: Vec<FieldRef> =
        table.schema.fields().iter().filter(|field| !generated.contains(field.name())).cloned().collect();
    let key = table.key.iter().map(|name| fields.iter().find(|field| field.name() == name).cloned());
    let key = key.collect::<Option<_>>().ok_or_else(|| {
        Error::new(ErrorKind::Schema, "a key column is missing or computed in the target")
            .with("table", &table.id)
    })?;
    Ok((fields, key))
}

pub(super) fn execute(
    statement: &mut Statement<'_>,
    cells: &[Cells],
    row: usize,
    scratch: &mut String,
) -> rusqlite::Result<u64> {
    for (at, cells) in cells.iter().enumerate() {
        cells.bind(statement, at + 1, row, scratch)?;
    }
    statement.raw_execute().map(|rows| rows as u64)
}

/// Whether it says that this row cannot be written, and nothing of others.
fn is_of_the_row(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::ToSqlConversionFailure(_))
        || matches!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig))
}

pub(super) fn refused_error(file: &File, table: &TargetTable, error: rusqlite::Error) -> Error {
    let error = match error {
        rusqlite::Error::ToSqlConversionFailure(source) => {
            Error::new(ErrorKind::Data, source.to_string()).hint("carry the column as text")
        }
        other => file.error(other),
    };
    error.with("table", &table.id)
}

pub(super) fn names(fields: &[FieldRef]) -> Vec<String> {
    fields.iter().map(|field| field.name().clone()).collect()
}

fn insert_sql(table: &str, fields: &[FieldRef]) -> String {
    let places: Vec<_> = (1..=fields.len()).map(|at| format!("?{at}")).collect();
    format!(
        "INSERT INTO {} ({}) VALUES ({})",
        SQLITE.ident(table),
        SQLITE.list(names(fields)),
        places.join(", ")
    )
}

/// Writes only what differs.
fn upsert_sql(table: &str, fields: &[FieldRef], key: &[String], deletes: Deletes) -> String {
    let insert = insert_sql(table, fields);
    format!("{insert} {}", on_conflict(table, fields, key, deletes))
}

/// What becomes of a row that is there, and nothing if it is the same: compared byte by byte, whatever the
/// column's collation says.
pub(super) fn on_conflict(table: &str, fields: &[FieldRef], key: &[String], deletes: Deletes) -> String {
    let name = SQLITE.ident(table);
    let mut set = Vec::new();
    let mut differs = Vec::new();
    for field in fields.iter().filter(|field| !key.contains(field.name())) {
        let column = SQLITE.ident(field.name());
        set.push(format!("{column} = excluded.{column}"));
        differs.push(format!("{name}.{column} IS NOT excluded.{column} COLLATE BINARY"));
    }
    if deletes == Deletes::Soft {
        let column = SQLITE.ident(DELETED_AT);
        set.push(format!("{column} = NULL"));
        differs.push(format!("{name}.{column} IS NOT NULL"));
    }
    let action = if set.is_empty() {
        "NOTHING".to_owned()
    } else {
        format!("UPDATE SET {} WHERE {}", set.join(", "), differs.join(" OR "))
    };
    format!("ON CONFLICT ({}) DO {action}", SQLITE.list(key))
}

fn delete_sql(table: &str, key: &[String], deletes: Deletes) -> String {
    let name = SQLITE.ident(table);
    let same: Vec<_> = key
        .iter()
        .enumerate()
        .map(|(at, column)| format!("{} = ?{}", SQLITE.ident(column), at + 1))
        .collect();
    let same = same.join(" AND ");
    match deletes {
        Deletes::Soft => {
            let column = SQLITE.ident(DELETED_AT);
            let now = "strftime('%Y-%m-%d %H:%M:%f', 'now')";
            format!("UPDATE {name} SET {column} = {now} WHERE {same} AND {column} IS NULL")
        }
        Deletes::Hard | Deletes::Ignore => format!("DELETE FROM {name} WHERE {same}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{DataType, Field};
    use expect_test::expect;
    use std::sync::Arc;

    #[test]
    fn statements() {
        let fields: Vec<FieldRef> = ["id", "or\"der", "name"]
            .into_iter()
            .map(|name| Arc::new(Field::new(name, DataType::Utf8, true)))
            .collect();
        let key = ["id".to_owned()];
        let text = [
            upsert_sql("t", &fields, &key, Deletes::Hard),
            upsert_sql("t", &fields[..1], &key, Deletes::Hard),
            upsert_sql("t", &fields[..1], &key, Deletes::Soft),
            delete_sql("t", &key, Deletes::Hard),
            delete_sql("t", &key, Deletes::Soft),
        ]
        .join("\n");
        expect![[r#"
            INSERT INTO "t" ("id", "or""der", "name") VALUES (?1, ?2, ?3) ON CONFLICT ("id") DO UPDATE SET "or""der" = excluded."or""der", "name" = excluded."name" WHERE "t"."or""der" IS NOT excluded."or""der" COLLATE BINARY OR "t"."name" IS NOT excluded."name" COLLATE BINARY
            INSERT INTO "t" ("id") VALUES (?1) ON CONFLICT ("id") DO NOTHING
            INSERT INTO "t" ("id") VALUES (?1) ON CONFLICT ("id") DO UPDATE SET "_deleted_at" = NULL WHERE "t"."_deleted_at" IS NOT NULL
            DELETE FROM "t" WHERE "id" = ?1
            UPDATE "t" SET "_deleted_at" = strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE "id" = ?1 AND "_deleted_at" IS NULL"#]].assert_eq(&text);
    }
}
