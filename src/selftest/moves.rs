//! What happens to the source: transactions of random changes, and new shapes of tables.
//!
//! What is drawn depends on the seed and on the model only, never on a clock: a seed replays it.

use std::collections::BTreeMap;

use super::chance::Chance;
use super::model::{Column, Edit, How, Key, SPECS, STAMP, Spec, State, Table, key_of};
use super::values::{Dialect, Kind, Value, moment};

/// One in so many values that may be NULL is.
const NULLS: usize = 7;
/// How many columns a table may grow to.
const MOST_COLUMNS: usize = 12;
/// A late row is at most this much older than its transaction; `lag` of its stream is more.
const LATEST_SECONDS: usize = 240;
/// The `lag` of streams with late rows.
pub(super) const LAG: &str = "10m";
/// Characters of a text in a key: an index of MySQL's holds 768, with a number behind them.
const LONGEST_KEY: usize = 700;
/// Rows of a table from which on more are deleted than added.
const MANY_ROWS: usize = 400;

/// Changes of one transaction, by table; times are still to be filled in.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) edits: Vec<(usize, Edit)>,
    /// By how much each row is older than its transaction, in seconds.
    age: Vec<i64>,
}

impl Transaction {
    /// Some changes of some tables. One that stays open must not meet others: it adds rows, and changes
    /// rows that are then held.
    pub(super) fn draw(chance: &mut Chance, tables: &mut [Table], stays_open: bool) -> Self {
        let mut transaction = Self::default();
        let first = chance.below(tables.len());
        let count = chance.weighed(&[(6, 1), (3, 2), (1, tables.len())]);
        for offset in 0..count {
            let index = (first + offset) % tables.len();
            let mut scratch = tables[index].now.clone();
            for _ in 0..*chance.pick(&[1, 1, 2, 3, 5, 12]) {
                let table = &mut tables[index];
                let Some(edit) = draw_edit(chance, table, &scratch, stays_open) else { continue };
                follow(&mut scratch, &edit, table.spec.key);
                if stays_open {
                    table.held.extend(touched(&edit, table.spec.key));
                }
                let late = table.spec.how == How::Stamped { late: true };
                transaction.age.push(if late { chance.below(LATEST_SECONDS) as i64 } else { 0 });
                transaction.edits.push((index, edit));
            }
        }
        transaction
    }

    /// Rows for a table that has none.
    pub(super) fn first_rows(chance: &mut Chance, tables: &mut [Table], index: usize, rows: usize) -> Self {
        let mut transaction = Self::default();
        for _ in 0..rows {
            let row = new_row(chance, &mut tables[index]);
            transaction.age.push(chance.below(LATEST_SECONDS) as i64);
            transaction.edits.push((index, Edit::Insert(row)));
        }
        transaction
    }

    /// Fills in times: the transaction happens at `now`, by a clock that is so many seconds slow.
    pub(super) fn stamp(&mut self, tables: &[Table], now: i64, skew: i64) {
        for ((index, edit), age) in self.edits.iter_mut().zip(&self.age) {
            let table = &tables[*index];
            let Some(column) = table.now.index(STAMP) else { continue };
            // Only who reads again what lies behind the position can follow a clock that is slow.
            let skew = if table.spec.how == (How::Stamped { late: true }) { skew } else { 0 };
            if let Edit::Insert(row) | Edit::Update(_, row) = edit {
                row[column] = Some(moment(now - (age + skew) * 1_000_000));
            }
        }
    }

    /// The statements, in their order.
    pub(super) fn statements(
        &self,
        tables: &[Table],
        dialect: Dialect,
        name: impl Fn(&str) -> String,
    ) -> String {
        let statement = |(index, edit): &(usize, Edit)| {
            let table = &tables[*index];
            statement(&table.now, edit, dialect, &name(table.spec.name))
        };
        self.edits.iter().map(statement).collect::<Vec<_>>().join(";\n")
    }

    /// Its changes by table.
    pub(super) fn by_table(&self) -> BTreeMap<usize, Vec<Edit>> {
        let mut tables: BTreeMap<usize, Vec<Edit>> = BTreeMap::new();
        for (index, edit) in &self.edits {
            tables.entry(*index).or_default().push(edit.clone());
        }
        tables
    }
}

fn touched(edit: &Edit, key: usize) -> Vec<Key> {
    match edit {
        Edit::Insert(row) => vec![key_of(row, key)],
        Edit::Update(old, row) => vec![old.clone(), key_of(row, key)],
        Edit::Delete(old) => vec![old.clone()],
    }
}

fn follow(state: &mut State, edit: &Edit, key: usize) {
    match edit {
        Edit::Insert(row) => drop(state.rows.insert(key_of(row, key), row.clone().into())),
        Edit::Update(old, row) => {
            state.rows.remove(old);
            state.rows.insert(key_of(row, key), row.clone().into());
        }
        Edit::Delete(old) => drop(state.rows.remove(old)),
    }
}

fn draw_edit(chance: &mut Chance, table: &mut Table, state: &State, stays_open: bool) -> Option<Edit> {
    let spec = table.spec;
    let many = state.rows.len() > MANY_ROWS;
    let what = match spec.how {
        How::Added => 0,
        // Undeletes and key changes may meet keys of others.
        _ if stays_open => chance.weighed(&[(5, 0), (5, 1)]),
        _ if spec.deletes => {
            let (adds, deletes) = if many { (2, 6) } else { (5, 2) };
            chance.weighed(&[(adds, 0), (6, 1), (deletes, 2), (2, 3), (1, 4)])
        }
        _ => chance.weighed(&[(4, 0), (6, 1)]),
    };
    if what == 0 {
        return Some(Edit::Insert(new_row(chance, table)));
    }
    if what == 4 && !table.deleted.is_empty() {
        let row = table.deleted.swap_remove(chance.below(table.deleted.len()));
        let free = !state.rows.contains_key(&key_of(&row, spec.key));
        return free.then_some(Edit::Insert(row));
    }
    let keys: Vec<&Key> = state.rows.keys().filter(|key| !table.held.contains(*key)).collect();
    if keys.is_empty() {
        return None;
    }
    let key = (*chance.pick(&keys)).clone();
    let mut row = state.rows[&key].to_vec();
    match what {
        2 => return Some(Edit::Delete(key)),
        3 => {
            let fresh = new_key(chance, table);
            row.splice(..spec.key, fresh);
        }
        _ => {
            for _ in 0..=chance.below(2) {
                let at = spec.key + chance.below(row.len() - spec.key);
                let column = &state.columns[at];
                if column.name != STAMP {
                    row[at] = any(chance, column.kind);
                }
            }
        }
    }
    Some(Edit::Update(key, row))
}

fn any(chance: &mut Chance, kind: Kind) -> Value {
    (!chance.one_in(NULLS)).then(|| kind.any(chance))
}

fn new_row(chance: &mut Chance, table: &mut Table) -> Vec<Value> {
    let mut row = new_key(chance, table);
    let columns = table.now.columns.clone();
    row.extend(columns[table.spec.key..].iter().map(|column| any(chance, column.kind)));
    row
}

/// A key that was never there.
fn new_key(chance: &mut Chance, table: &mut Table) -> Vec<Value> {
    let number = table.next_key;
    table.next_key += 1;
    let spec = table.spec;
    let last = spec.key - 1;
    let part = |(at, (_, kind)): (usize, &(&str, Kind))| {
        Some(match (kind, at == last) {
            // Unlike its neighbours, so that keys come in no order.
            (Kind::Text, true) => {
                let text = Kind::Text.any(chance);
                format!("{} {number}", text.chars().take(LONGEST_KEY).collect::<String>())
            }
            (Kind::Long, true) if spec.how == How::Whole => (number * 7919 % 100_003 - 50_000).to_string(),
            (_, true) => number.to_string(),
            (Kind::Date, false) => moment(chance.below(20) as i64 * 86_400_000_000)[..10].to_owned(),
            (_, false) => (chance.below(40) as i64 - 5).to_string(),
        })
    };
    spec.columns[..spec.key].iter().enumerate().map(part).collect()
}

fn statement(state: &State, edit: &Edit, dialect: Dialect, table: &str) -> String {
    let literal = |at: usize, value: &Value| state.columns[at].kind.literal(dialect, value);
    let found = |key: &Key| {
        let parts = key.split('\u{1f}').enumerate();
        let parts = parts.map(|(at, part)| {
            format!("{} = {}", state.columns[at].name, literal(at, &Some(part.to_owned())))
        });
        parts.collect::<Vec<_>>().join(" AND ")
    };
    match edit {
        Edit::Insert(row) => {
            let names: Vec<&str> = state.columns.iter().map(|column| column.name.as_str()).collect();
            let values: Vec<String> = row.iter().enumerate().map(|(at, value)| literal(at, value)).collect();
            format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "))
        }
        Edit::Update(key, row) => {
            let sets = row.iter().enumerate();
            let sets = sets.map(|(at, value)| format!("{} = {}", state.columns[at].name, literal(at, value)));
            let sets = sets.collect::<Vec<_>>().join(", ");
            format!("UPDATE {table} SET {sets} WHERE {}", found(key))
        }
        Edit::Delete(key) => format!("DELETE FROM {table} WHERE {}", found(key)),
    }
}

/// The statement that makes a table.
pub(super) fn create(spec: &Spec, dialect: Dialect, table: &str) -> String {
    let column = |(at, (name, kind)): (usize, &(&str, Kind))| {
        let null = if at < spec.key { " NOT NULL" } else { "" };
        let declared = match dialect {
            // An index needs an end, and a time by which changes are found a zone.
            Dialect::Mysql if *kind == Kind::Text && at < spec.key => "varchar(740)",
            Dialect::Mysql if *name == STAMP => "timestamp(6) NULL",
            _ => kind.declared(dialect),
        };
        format!("{name} {declared}{null}")
    };
    let columns: Vec<String> = spec.columns.iter().enumerate().map(column).collect();
    let key: Vec<&str> = spec.columns[..spec.key].iter().map(|(name, _)| *name).collect();
    // Without a key in the database, rows that are loaded twice are there twice.
    if spec.how == How::Added {
        return format!("CREATE TABLE {table} ({})", columns.join(", "));
    }
    format!("CREATE TABLE {table} ({}, PRIMARY KEY ({}))", columns.join(", "), key.join(", "))
}

/// Another shape of a table.
#[derive(Debug)]
pub(super) enum Reshape {
    Add(Column),
    Drop(usize),
    Rename(usize, String),
    Widen(usize, Kind),
}

impl Reshape {
    /// A table that changes, and how.
    pub(super) fn draw(chance: &mut Chance, tables: &mut [Table], dialect: Dialect) -> (usize, Self) {
        let index = chance.below(SPECS.len());
        let table = &mut tables[index];
        let name = format!("c{}", table.next_column);
        let free: Vec<usize> = (table.spec.key..table.now.columns.len())
            .filter(|at| table.now.columns[*at].name != STAMP)
            .collect();
        let kind = *chance.pick(&Kind::ALL);
        let at = *chance.pick(&free);
        let what = match dialect {
            // SQLite knows no column by an id: a renamed column is another one, which a stream that does
            // not read every row again cannot fill.
            Dialect::Sqlite if table.spec.how != How::Whole => chance.weighed(&[(3, 0), (1, 1)]),
            Dialect::Sqlite => chance.weighed(&[(3, 0), (1, 1), (2, 2)]),
            // MySQL neither.
            Dialect::Mysql if table.spec.how != How::Whole => chance.weighed(&[(3, 0), (1, 1), (3, 3)]),
            Dialect::Mysql | Dialect::Postgres => chance.weighed(&[(3, 0), (1, 1), (2, 2), (3, 3)]),
        };
        let wider = free.iter().find_map(|at| Some((*at, table.now.columns[*at].kind.wider()?)));
        let many = table.now.columns.len() >= MOST_COLUMNS;
        let reshape = match what {
            1 if free.len() > 2 => Self::Drop(at),
            2 => Self::Rename(at, name),
            3 if let Some((at, kind)) = wider => Self::Widen(at, kind),
            _ if many => Self::Drop(at),
            _ => Self::Add(Column { name, kind }),
        };
        if matches!(reshape, Self::Add(_) | Self::Rename(..)) {
            table.next_column += 1;
        }
        (index, reshape)
    }

    /// Its statement.
    pub(super) fn statement(&self, state: &State, dialect: Dialect, table: &str) -> String {
        let name = |at: usize| state.columns[at].name.as_str();
        let change = match self {
            Self::Add(column) => format!("ADD COLUMN {} {}", column.name, column.kind.declared(dialect)),
            Self::Drop(at) => format!("DROP COLUMN {}", name(*at)),
            Self::Rename(at, new) => format!("RENAME COLUMN {} TO {new}", name(*at)),
            Self::Widen(at, kind) if dialect == Dialect::Mysql => {
                format!("MODIFY COLUMN {} {}", name(*at), kind.declared(dialect))
            }
            Self::Widen(at, kind) => {
                format!("ALTER COLUMN {} TYPE {}", name(*at), kind.declared(dialect))
            }
        };
        format!("ALTER TABLE {table} {change}")
    }

    /// What it is, for the report.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "column added",
            Self::Drop(_) => "column dropped",
            Self::Rename(..) => "column renamed",
            Self::Widen(..) => "column widened",
        }
    }

    /// The source has committed it.
    pub(super) fn commit(&self, table: &mut Table) {
        let mut columns = table.now.columns.to_vec();
        match self {
            Self::Add(column) => columns.push(column.clone()),
            Self::Drop(at) => drop(columns.remove(*at)),
            Self::Rename(at, name) => columns[*at].name.clone_from(name),
            Self::Widen(at, kind) => columns[*at].kind = *kind,
        }
        table.reshape(columns, |row| {
            let mut row = row.to_vec();
            match self {
                Self::Add(_) => row.push(None),
                Self::Drop(at) => drop(row.remove(*at)),
                Self::Rename(..) | Self::Widen(..) => {}
            }
            row
        });
    }
}
