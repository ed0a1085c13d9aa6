//! What targets share that look at what others changed in a table.
//!
//! ```text
//! staging (ours, and what we wrote last) ─┐
//!                                         ├─▶ Comparison: marks of the rows that somebody touched ─▶ Plan
//! table   (what is there)                 ─┘                            leave, mix, take, and what to log
//! ```
//!
//! Both sides of a load are staged in columns of the target's own types, so what is compared is what the
//! table would hold: a text cut or padded, a number rounded on its way in is no change of somebody else's.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;

use super::Alters;
use super::Dialect;
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;
use crate::target::{Clash, ConflictRules, Conflicts, Deletes, FoundConflict, Met, Outcome, decide};

/// Texts that one `CONCAT` puts together: SQL Server's takes 254.
const MOST_ARGUMENTS: usize = 250;

/// The three values of a column, as expressions.
#[derive(Debug, Clone)]
pub struct Sides {
    /// What we wrote last.
    pub base: String,
    /// What the source has.
    pub source: String,
    /// What is there.
    pub target: String,
}

/// A statement that finds the rows that somebody else touched. `s` is the staging table in it, with `n`, `op`
/// and `b`, 1 where a row was there before.
pub struct Comparison<'a> {
    /// The database.
    pub dialect: &'a Dialect,
    /// `FROM … s LEFT JOIN … t …`
    pub from: String,
    /// Holds where the target has the row.
    pub there: String,
    /// The staged row's number.
    pub number: &'a str,
    /// Columns that are no key.
    pub sides: Vec<Sides>,
    /// Which of these says when the row was written.
    pub last_write: Option<usize>,
    /// What happens to deleted rows.
    pub deletes: Deletes,
    /// A condition that holds where two values of one column differ.
    pub differ: &'a dyn Fn(usize, &str, &str) -> String,
}

impl Comparison<'_> {
    /// `SELECT` number and marks, as [`Met::parse`] reads them.
    pub fn statement(&self) -> String {
        let (mut marks, mut changed, mut apart) = (Vec::new(), Vec::new(), Vec::new());
        marks.extend(["s.b = 1", "s.op = 0", self.there.as_str()].map(mark));
        let newer = self.last_write.map(|place| &self.sides[place]);
        marks.push(newer.map_or_else(
            || "'0'".to_owned(),
            |Sides { source, target, .. }| mark(&format!("{target} IS NULL OR {source} >= {target}")),
        ));
        for (place, Sides { base, source, target }) in self.sides.iter().enumerate() {
            let [by_target, by_source, between] =
                [(target, base), (source, base), (target, source)].map(|(a, b)| (self.differ)(place, a, b));
            marks.extend([mark(&by_target), mark(&by_source), mark(&between)]);
            changed.push(by_target);
            apart.push(between);
        }
        let there = &self.there;
        let mut touched = format!(
            "(({there} AND s.b = 1 AND {}) OR ({there} AND s.b = 0 AND s.op = 0 AND {}) \
             OR (NOT ({there}) AND s.b = 1 AND s.op = 0))",
            any(&changed),
            any(&apart)
        );
        if self.deletes == Deletes::Ignore {
            touched = format!("s.op = 0 AND {touched}");
        }
        format!("SELECT {}, {} AS marks {} WHERE {touched}", self.number, self.together(&marks), self.from)
    }

    fn together(&self, marks: &[String]) -> String {
        if !matches!(self.dialect.alters, Alters::TransactSql | Alters::MySql) {
            return marks.join(" || ");
        }
        let some = marks.chunks(MOST_ARGUMENTS).map(|some| format!("CONCAT('', {})", some.join(", ")));
        format!("CONCAT('', {})", some.collect::<Vec<_>>().join(", "))
    }
}

fn mark(condition: &str) -> String {
    format!("CASE WHEN {condition} THEN '1' ELSE '0' END")
}

fn any(conditions: &[String]) -> String {
    if conditions.is_empty() { "1 = 0".to_owned() } else { format!("({})", conditions.join(" OR ")) }
}

/// What is to be done with some of the rows that somebody touched. All others are taken as they come.
#[derive(Debug, Default)]
pub struct Plan {
    /// Staged rows that are not applied.
    pub leave: Vec<i64>,
    /// Staged rows of which some columns are not applied, with a mark for each column: `1` keeps what is there.
    pub mix: Vec<(i64, String)>,
    /// Conflicts to log.
    pub clashes: Vec<(i64, Clash)>,
}

impl Plan {
    /// Decides about rows by what a [`Comparison`] says of them. `columns` are those that are no key.
    pub fn of(
        rules: &ConflictRules,
        columns: &[&str],
        met: impl IntoIterator<Item = Result<(i64, String)>>,
    ) -> Result<Self> {
        let policies: Vec<_> = columns.iter().map(|column| rules.of(column)).collect();
        let mut plan = Self::default();
        for row in met {
            let (number, marks) = row?;
            let (outcome, clash) = decide(&policies, rules.default, &Met::parse(&marks)?);
            match outcome {
                Outcome::Take => {}
                Outcome::Leave => plan.leave.push(number),
                Outcome::Mix(kept) => {
                    let marks = kept.into_iter().map(|kept| if kept { '1' } else { '0' }).collect();
                    plan.mix.push((number, marks));
                }
            }
            plan.clashes.extend(clash.map(|clash| (number, clash)));
        }
        Ok(plan)
    }

    /// Staged rows of which the same columns are kept.
    pub fn alike(&self) -> BTreeMap<&str, Vec<i64>> {
        let mut alike: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for (number, kept) in &self.mix {
            alike.entry(kept).or_default().push(*number);
        }
        alike
    }

    /// Staged rows that nothing is left to do with, once those that are mixed are written.
    pub fn done(&self) -> Vec<i64> {
        self.leave.iter().copied().chain(self.mix.iter().map(|(number, _)| *number)).collect()
    }

    /// Where the column is that says when a row was written, if any policy asks for it.
    pub fn last_write(rules: &ConflictRules, table: &TableId, columns: &[&str]) -> Result<Option<usize>> {
        if !rules.need_last_write() {
            return Ok(None);
        }
        let name = rules.last_write.as_deref().unwrap_or_default();
        match columns.iter().position(|column| *column == name) {
            Some(place) => Ok(Some(place)),
            None => Err(Error::new(
                ErrorKind::Config,
                "the target computes the column that says when a row was written",
            )
            .with("table", table)
            .with("last_write", name)
            .hint("set `last_write` to a column that the stream writes")),
        }
    }
}

/// A load that carries out a [`Plan`].
#[async_trait]
pub trait Beside: Send {
    /// The keys of staged rows, and what source, base and target have of them.
    async fn sides(&mut self, numbers: &[i64]) -> Result<Sided>;

    /// Writes these staged rows, all columns but those that `kept` marks with `1`. Returns how many there were.
    async fn mix(&mut self, numbers: &[i64], kept: &str) -> Result<u64>;

    /// Takes rows out of the staging table.
    async fn forget(&mut self, numbers: &[i64]) -> Result<()>;
}

impl Plan {
    /// Does what the plan says, `at_once` staged rows at a time, and tells of its conflicts. Returns how many
    /// rows it wrote.
    pub async fn carry_out(
        &self,
        load: &mut dyn Beside,
        columns: &[&str],
        conflicts: &dyn Conflicts,
        at_once: usize,
    ) -> Result<u64> {
        for clashes in self.clashes.chunks(at_once) {
            let numbers: Vec<i64> = clashes.iter().map(|(number, _)| *number).collect();
            conflicts.found(Self::found(clashes, columns, load.sides(&numbers).await?)?)?;
        }
        let mut written = 0;
        for (kept, numbers) in self.alike() {
            for numbers in numbers.chunks(at_once) {
                written += load.mix(numbers, kept).await?;
            }
        }
        for numbers in self.done().chunks(at_once) {
            load.forget(numbers).await?;
        }
        Ok(written)
    }
}

/// What is known of a row by its number: its key, and what source, base and target have of it, as JSON.
pub type Sided = HashMap<i64, (String, [Option<String>; 3])>;

impl Plan {
    /// Conflicts as they are told of. `columns` are those that are no key.
    pub fn found(clashes: &[(i64, Clash)], columns: &[&str], mut sides: Sided) -> Result<Vec<FoundConflict>> {
        let found = clashes.iter().map(|(number, (kind, fields))| {
            let found = sides.remove(number);
            let (key, [source, base, target]) =
                found.ok_or_else(|| Error::new(ErrorKind::Internal, "a staged row has gone"))?;
            let fields = fields.iter().map(|(place, resolution)| (columns[*place].to_owned(), *resolution));
            Ok(FoundConflict { kind: *kind, key, fields: fields.collect(), base, source, target })
        });
        found.collect()
    }
}
