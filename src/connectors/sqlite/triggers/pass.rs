//! A pass over the changes that triggers wrote down, or the whole read that comes before.

use arrow::datatypes::{DataType, Field, Schema};
use rusqlite::Connection as Database;

use super::super::describe::{self, Described};
use super::super::plan::{At, Column, Cursor, Position, Resolved, Start, columns};
use super::super::read::{self, Planned, SqliteReading};
use super::super::types::Kind;
use super::installed::{Installed, check_table, look};
use super::statements::{Parts, READERS, TABLES};
use crate::clients::sqlite::File;
use crate::connectors::sql::SQLITE;
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Extent, ReadPlan, ReadRequest};
use crate::table::OP_COLUMN;

/// Changes that one statement removes: other writers wait that long.
const PRUNED_AT_ONCE: usize = 20_000;

/// Where to begin.
enum Begin {
    /// With the whole table. What was before it is of no use, or there was nothing.
    Nothing,
    /// With the whole table, although nothing was missed: triggers do not see why.
    Again,
    /// After a number.
    After(i64),
}

/// Opens a pass. Blocks.
pub(in super::super) fn open(file: &File, request: ReadRequest) -> Result<SqliteReading> {
    let database = file.open()?;
    let failed = |error| file.error(error);
    database.execute_batch("BEGIN").map_err(failed)?;
    let mut decided = decide(file, &database, &request)?;
    if is_silent(&database, &decided.changes, &request.reader).map_err(failed)? {
        database.execute_batch("ROLLBACK").map_err(failed)?;
        appear(&database, &decided.changes, &request.reader).map_err(failed)?;
        database.execute_batch("BEGIN").map_err(failed)?;
        decided = decide(file, &database, &request)?;
    }
    if matches!(decided.begin, Begin::Nothing) {
        // From here on changes are kept for us, and only now we look.
        database.execute_batch("ROLLBACK").map_err(failed)?;
        register(&database, &decided, &request.reader).map_err(failed)?;
        database.execute_batch("BEGIN").map_err(failed)?;
        let again = decide(file, &database, &request)?;
        decided = Decided { begin: Begin::Nothing, notes: decided.notes, ..again };
    }
    database.execute_batch("PRAGMA query_only = ON").map_err(failed)?;
    let planned = decided.planned(&database, &request)?;
    read::start(file, database, request, planned)
}

/// What a pass would do. Blocks.
pub(in super::super) fn plan(file: &File, request: &ReadRequest) -> Result<ReadPlan> {
    let database = file.open()?;
    database.execute_batch("BEGIN").map_err(|error| file.error(error))?;
    Ok(decide(file, &database, request)?.planned(&database, request)?.plan)
}

/// Whether a position is one of triggers.
pub(in super::super) fn is_position(position: &Watermark) -> bool {
    matches!(Position::read(position), Some(Position { at: At::Triggers { .. }, .. }))
}

/// Notes what is durable in a lake, and removes what all readers have. Blocks.
pub(in super::super) fn acknowledge(file: &File, position: &Watermark) -> Result<()> {
    let Some(Position { at: At::Triggers { changes, reader, seq, .. }, .. }) = Position::read(position)
    else {
        return Ok(());
    };
    let database = file.open()?;
    let acknowledge = || -> rusqlite::Result<()> {
        database.execute(
            &format!(
                "INSERT INTO {READERS} (changes, reader, seq, seen) \
                 SELECT changes, ?2, CAST(?3 AS INTEGER), datetime('now') FROM {TABLES} WHERE changes = ?1 \
                 ON CONFLICT (changes, reader) DO UPDATE SET seq = max(seq, excluded.seq), seen = excluded.seen"
            ),
            [&changes, &reader, &seq],
        )?;
        // First it is said how far changes are not needed any more, then they go.
        let released = database.execute(
            &format!(
                "UPDATE {TABLES} SET pruned = (SELECT min(seq) FROM {READERS} WHERE changes = ?1) \
                 WHERE changes = ?1 AND pruned < (SELECT min(seq) FROM {READERS} WHERE changes = ?1)"
            ),
            [&changes],
        )?;
        let removal = format!(
            "DELETE FROM {0} WHERE seq IN (SELECT seq FROM {0} WHERE seq <= \
             (SELECT pruned FROM {TABLES} WHERE changes = ?1) ORDER BY seq LIMIT {PRUNED_AT_ONCE})",
            SQLITE.ident(&changes)
        );
        while released > 0 && database.execute(&removal, [&changes])? >= PRUNED_AT_ONCE {}
        Ok(())
    };
    acknowledge().map_err(|error| file.error(error))
}

/// What a pass begins with.
struct Decided {
    described: Described,
    installed: Installed,
    changes: String,
    begin: Begin,
    notes: Vec<String>,
}

fn decide(file: &File, database: &Database, request: &ReadRequest) -> Result<Decided> {
    let described = describe::find(file, database, &request.table)?;
    check_table(&described, request)?;
    let installed = look(file, database, &described, &request.key)?;
    installed.parts.check()?;
    let changes = Parts::of(&described, &request.key).changes();
    let mut notes = Vec::new();
    let begin = begin(request, &installed, &changes, &mut notes);
    Ok(Decided { described, installed, changes, begin, notes })
}

/// Reads the stored position; where it is of no use, a note says why.
fn begin(request: &ReadRequest, installed: &Installed, name: &str, notes: &mut Vec<String>) -> Begin {
    let Some(watermark) = &request.from else { return Begin::Nothing };
    let mut useless = |why: &str| {
        notes.push(format!("the stored position is not used: {why}; the whole table is read"));
        Begin::Nothing
    };
    let Some(Position { at, .. }) = Position::read(watermark) else { return useless("it is not readable") };
    let At::Triggers { changes, stamp, shape, seq, .. } = at else {
        return useless("it does not come from triggers");
    };
    let Ok(seq) = seq.parse::<i64>() else { return useless("it is not readable") };
    if changes != name {
        return useless("the stream goes by another key now");
    }
    if stamp != installed.stamp {
        return useless("triggers were installed anew since");
    }
    if seq < installed.pruned {
        return useless("changes since then were removed: its reader was forgotten");
    }
    if seq > installed.newest {
        return useless("the file is older than it: a copy was put back");
    }
    if shape != installed.shape {
        notes.push("the whole table is read and compared: it was altered".to_owned());
        return Begin::Again;
    }
    Begin::After(seq)
}

/// Whether nobody has heard of a reader for a day: where nothing changes, it notes nothing.
fn is_silent(database: &Database, changes: &str, reader: &str) -> rusqlite::Result<bool> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {READERS} WHERE changes = ?1 AND reader = ?2 \
         AND seen < datetime('now', '-1 day'))"
    );
    database.query_row(&sql, [changes, reader], |row| row.get(0))
}

fn appear(database: &Database, changes: &str, reader: &str) -> rusqlite::Result<()> {
    let sql = format!("UPDATE {READERS} SET seen = datetime('now') WHERE changes = ?1 AND reader = ?2");
    database.execute(&sql, [changes, reader]).map(drop)
}

/// Makes a reader known, before it looks at the table.
fn register(database: &Database, decided: &Decided, reader: &str) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO {READERS} (changes, reader, seq, seen) VALUES (?1, ?2, ?3, datetime('now')) \
         ON CONFLICT (changes, reader) DO UPDATE SET seq = excluded.seq, seen = excluded.seen"
    );
    database.execute(&sql, rusqlite::params![decided.changes, reader, decided.installed.newest]).map(drop)
}

impl Decided {
    fn planned(self, database: &Database, request: &ReadRequest) -> Result<Planned> {
        let Self { described, installed, changes, begin, mut notes } = self;
        let to = |seq: i64| At::Triggers {
            changes: changes.clone(),
            stamp: installed.stamp.clone(),
            shape: installed.shape.clone(),
            reader: request.reader.clone(),
            seq: seq.to_string(),
        };
        let (columns, fields): (Vec<Column>, Vec<Field>) = columns(request, &described)?.into_iter().unzip();
        let schema = Schema::new(fields);
        let mut plan = ReadPlan {
            change: request.change,
            cursor: None,
            cursor_indexed: false,
            extent: Extent::Whole,
            resumable: false,
            continues: matches!(begin, Begin::Again),
            notes: Vec::new(),
            statement: String::new(),
            known_to: None,
            rows: described.table.rows,
            bytes: described.table.bytes,
            schema: schema.clone().into(),
        };
        let mut resolved = Resolved {
            columns,
            cursor: Cursor::Full,
            start: Start::Whole,
            row_id: described.row_id,
            table_rows: described.table.rows,
            plan: plan.clone(),
        };
        let Begin::After(after) = begin else {
            plan.notes = notes;
            plan.statement = resolved.select(request, &resolved.window(request, None), None);
            return Ok(Planned {
                statement: plan.statement.clone(),
                plan,
                resolved,
                resume: to(installed.newest).watermark(),
            });
        };
        let key = Parts::of(&described, &request.key);
        let names: Vec<String> = resolved.columns.iter().map(|column| column.name.clone()).collect();
        let statement = key.changed(&names, after);
        // Numbers that were rolled back are no change, but the position may well go past them.
        let sql = format!("SELECT count(*) FROM {} WHERE seq > ?1", SQLITE.ident(&changes));
        let count: i64 = database
            .query_row(&sql, [after], |row| row.get(0))
            .map_err(|error| Error::new(ErrorKind::Transient, error.to_string()))?;
        plan.extent = Extent::Log;
        plan.continues = true;
        (plan.rows, plan.bytes) = (Some(count.unsigned_abs()), None);
        plan.notes.append(&mut notes);
        plan.statement.clone_from(&statement);
        // Of a deleted row all but the key is NULL.
        for column in &mut resolved.columns {
            column.nullable |= !request.key.contains(&column.name);
        }
        resolved.columns.push(Column {
            name: OP_COLUMN.to_owned(),
            declared: "INTEGER".to_owned(),
            kind: Kind::Integer,
            nullable: false,
        });
        let nullable = resolved.columns.iter().zip(schema.fields());
        let mut fields: Vec<Field> =
            nullable.map(|(column, field)| field.as_ref().clone().with_nullable(column.nullable)).collect();
        fields.push(Field::new(OP_COLUMN, DataType::Int64, false));
        resolved.plan.schema = Schema::new(fields).into();
        let same = request.from.clone().filter(|_| count == 0);
        let resume = same.unwrap_or_else(|| to(installed.newest).watermark());
        Ok(Planned { statement, plan, resolved, resume })
    }
}
