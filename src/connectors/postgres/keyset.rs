//! Reads in ranges of a key, where rows have no place that a range of `ctid`s could name: views,
//! foreign tables, servers before Postgres 14; and windows so large that one stream takes too long.
//!
//! ```text
//! probe: the keys in order, from the last bound on ──▶ every n-th is a bound
//! (·, b1] (b1, b2] (b2, b3] … (bn, ·)  and  "a part of the key is NULL"
//! ```
//!
//! Ranges are half-open by the server's own order, so each row is in exactly one, however often its
//! key repeats. A bound is a key that is there, so a hole in the numbers makes no empty ranges. A probe
//! goes on where the one before it ended: together they go through the index once.
//!
//! That pays only where an index gives the order. The planner is asked; where it would sort, or join
//! anew for each range, the relation is read by one statement, and a note says so.

use super::discover::{Column, Relation};
use super::estimate::{Estimate, estimate};
use super::read::Work;
use super::window::Prepared;
use crate::clients::postgres::Session;
use crate::connectors::sql::{POSTGRES, RANGE_BYTES, RANGES_A_STREAM, SMALLEST_RANGE_BYTES, Select};
use crate::error::Result;
use crate::source::{ChangeDetection, Extent, ReadRequest};

/// Types whose order is total and whose text means the same value again.
const ORDERED: [&str; 15] = [
    "int2",
    "int4",
    "int8",
    "oid",
    "numeric",
    "text",
    "varchar",
    "bpchar",
    "name",
    "uuid",
    "bytea",
    "date",
    "time",
    "timestamp",
    "timestamptz",
];

/// Reading all ranges may cost so many times what one statement would.
const MOST_COST: f64 = 4.0;
/// The first row in order may cost this part of all rows: more, and something is sorted first.
const FIRST_ROW_COST: f64 = 0.1;
/// Below this cost (the planner's unit is the read of a page) one statement is as good as any.
const SMALL_COST: f64 = 100.0;
/// Rows of a window from which several streams pay.
const LARGE_WINDOW: f64 = 1_000_000.0;

/// Columns by which a relation is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keyset {
    from: String,
    columns: Vec<KeyColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyColumn {
    name: String,
    /// As a cast names its type.
    of: String,
    nullable: bool,
}

/// A key, each part as the server's text.
pub(super) type Bound = Vec<String>;

/// What is left to be read by ranges.
#[derive(Debug, Clone)]
pub(super) struct ByKey {
    pub(super) select: Select,
    pub(super) keys: Keyset,
    /// What the relation looked like, see [`Relation::layout`].
    pub(super) layout: String,
    /// Everything up to here is done, keys that are NULL too.
    pub(super) after: Option<Bound>,
    /// How many rows a range has.
    pub(super) range_rows: u64,
    /// How many a portion has: whole ranges.
    pub(super) portion_rows: u64,
}

/// The statements of a portion, and its end; `None` where the relation ends.
pub(super) struct Cut {
    pub(super) statements: Vec<String>,
    pub(super) end: Option<Bound>,
}

impl Keyset {
    /// The columns of these names, if they have an order that can be cut.
    pub(super) fn of(relation: &Relation, names: &[String]) -> Option<Self> {
        let column = |name: &String| {
            let column = relation.column(name)?;
            ordered(relation, column).then(|| KeyColumn {
                name: POSTGRES.ident(name),
                of: column.written.clone(),
                nullable: !(column.not_null && relation.has_constraints()),
            })
        };
        let columns = names.iter().map(column).collect::<Option<Vec<_>>>()?;
        (!columns.is_empty()).then(|| Self { from: relation.quoted(), columns })
    }

    /// Names and types: a bound means something to the same ones only.
    pub(super) fn described(&self) -> Vec<String> {
        self.columns.iter().map(|column| format!("{} {}", column.name, column.of)).collect()
    }

    fn list(&self) -> String {
        self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// `(a, b) > ('x'::text, '7'::bigint)`
    fn compare(&self, operator: &str, bound: &Bound) -> String {
        let values = self
            .columns
            .iter()
            .zip(bound)
            .map(|(column, value)| format!("'{}'::{}", value.replace('\'', "''"), column.of));
        let values = values.collect::<Vec<_>>().join(", ");
        format!("({}) {operator} ({values})", self.list())
    }

    /// Rows that no comparison finds in one place only.
    fn some_null(&self) -> Option<String> {
        let nulls = self.columns.iter().filter(|column| column.nullable);
        let nulls: Vec<_> = nulls.map(|column| format!("{} IS NULL", column.name)).collect();
        (!nulls.is_empty()).then(|| nulls.join(" OR "))
    }

    /// `lower < key <= upper`, and no part of it NULL.
    fn range(&self, lower: Option<&Bound>, upper: Option<&Bound>) -> Option<String> {
        let nulls = self.columns.iter().filter(|column| column.nullable);
        let mut conditions: Vec<_> = nulls.map(|column| format!("{} IS NOT NULL", column.name)).collect();
        conditions.extend(lower.map(|bound| self.compare(">", bound)));
        conditions.extend(upper.map(|bound| self.compare("<=", bound)));
        (!conditions.is_empty()).then(|| conditions.join(" AND "))
    }

    /// The keys after a bound, in order, with all conditions of the read.
    fn in_order(&self, select: &Select, after: Option<&Bound>, rows: u64) -> String {
        let names = self.columns.iter().enumerate().map(|(i, column)| format!("{} AS k{i}", column.name));
        let keys = Select {
            what: format!("SELECT {} FROM {}", names.collect::<Vec<_>>().join(", "), self.from),
            conditions: select.conditions.clone(),
        };
        format!("{} ORDER BY {} LIMIT {rows}", keys.with(self.range(after, None)), self.list())
    }
}

impl ByKey {
    /// Ranges of a size that goes with what the planner expects of the whole.
    fn new(
        relation: &Relation,
        keys: Keyset,
        (select, after): (&Select, &Option<Bound>),
        whole: &Estimate,
        parallel: usize,
        portion_bytes: u64,
    ) -> Self {
        let row_bytes = (whole.bytes() / whole.rows.max(1.0)).max(1.0);
        let rows = |bytes: u64| ((bytes as f64 / row_bytes) as u64).max(1);
        let range_bytes = (portion_bytes.min(whole.bytes() as u64)
            / (parallel.max(1) as u64 * RANGES_A_STREAM))
            .clamp(SMALLEST_RANGE_BYTES.min(portion_bytes), RANGE_BYTES);
        let range_rows = rows(range_bytes);
        // The server counts in 64 bits with a sign.
        let ranges = (rows(portion_bytes) / range_rows).clamp(1, i64::MAX as u64 / range_rows);
        Self {
            select: select.clone(),
            keys,
            layout: relation.layout.clone(),
            after: after.clone(),
            range_rows,
            portion_rows: ranges * range_rows,
        }
    }

    /// Finds the next portion's bounds.
    pub(super) async fn cut(&self, session: &Session) -> Result<Cut> {
        let columns: Vec<_> = (0..self.keys.columns.len()).map(|i| format!("k{i}")).collect();
        let texts: Vec<_> = columns.iter().map(|column| format!("{column}::text")).collect();
        let (step, all) = (self.range_rows, self.portion_rows);
        let sql = format!(
            "SELECT {}, place FROM (SELECT *, row_number() OVER (ORDER BY {}) AS place FROM ({}) k) n \
             WHERE place % {step} = 0 ORDER BY place",
            texts.join(", "),
            columns.join(", "),
            self.keys.in_order(&self.select, self.after.as_ref(), all),
        );
        let rows = session.query_typed(&sql, &[]).await?;
        let bounds = rows.iter().map(|row| {
            let bound: Bound = (0..columns.len()).map(|i| row.get(i)).collect();
            (bound, row.get::<_, i64>(columns.len()) as u64)
        });

        let mut statements = Vec::new();
        // With the first portion, so that whoever goes on from a bound need not ask again.
        if let Some(nulls) = self.keys.some_null().filter(|_| self.after.is_none()) {
            statements.push(self.select.with(Some(nulls)));
        }
        let mut lower = self.after.clone();
        let mut end = None;
        for (bound, place) in bounds {
            // A key that fills more than a range is its bound more than once.
            if lower.as_ref() != Some(&bound) {
                statements.push(self.select.with(self.keys.range(lower.as_ref(), Some(&bound))));
                lower = Some(bound);
            }
            if place == all {
                end.clone_from(&lower);
            }
        }
        if end.is_none() {
            statements.push(self.select.with(self.keys.range(lower.as_ref(), None)));
        }
        Ok(Cut { statements, end })
    }

    /// Whether an index gives the order, so that ranges cost about what one statement does.
    async fn served(&self, session: &Session, whole: &Estimate) -> Result<bool> {
        let ordered = estimate(session, &self.keys.in_order(&self.select, None, self.range_rows)).await?;
        let ranges = (whole.rows / self.range_rows as f64).ceil().max(1.0);
        Ok(ordered.first_row_cost <= whole.cost * FIRST_ROW_COST
            && ordered.cost * ranges <= whole.cost * MOST_COST)
    }
}

/// Cuts what would be one statement into ranges, if that can be done and pays.
pub(super) async fn refine(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
    prepared: &mut Prepared,
) -> Result<()> {
    let Work::Whole { select, after } = &prepared.work else { return Ok(()) };
    let plan = &mut prepared.plan;
    let whole = estimate(session, &plan.statement).await?;
    plan.rows = Some(whole.rows as u64);
    plan.bytes = Some(whole.bytes() as u64);
    let (names, portion_bytes) = match (plan.extent, &plan.cursor) {
        (Extent::Whole, _) => (key_names(relation, request), request.portion_bytes),
        // A window is one portion: what it ends at holds for all of it.
        (_, Some(cursor)) if whole.rows >= LARGE_WINDOW && request.parallel > 1 => {
            (vec![cursor.clone()], u64::MAX)
        }
        _ => return Ok(()),
    };
    let whole_read = plan.extent == Extent::Whole;
    let why = match Keyset::of(relation, &names) {
        None if names.is_empty() => "its key is not known; name it in `primary_key`",
        None => "its key has a type without a usable order",
        Some(keys) => {
            let ranges = ByKey::new(relation, keys, (select, after), &whole, request.parallel, portion_bytes);
            if after.is_some() || (whole.cost >= SMALL_COST && ranges.served(session, &whole).await?) {
                plan.notes.push(format!("read in ranges of ({})", names.join(", ")));
                use ChangeDetection::{Timestamp, Trigger};
                plan.resumable = whole_read && request.keyed && matches!(plan.change, Timestamp | Trigger);
                prepared.work = Work::Keys(ranges);
                return Ok(());
            }
            "no index gives the order of its key"
        }
    };
    if whole_read && whole.cost >= SMALL_COST {
        plan.notes.push(format!("read in one stream, which a crash starts anew: {why}"));
    }
    Ok(())
}

/// The key that the request names, else one that the relation has.
pub(super) fn key_names(relation: &Relation, request: &ReadRequest) -> Vec<String> {
    if !request.key.is_empty() {
        return request.key.clone();
    }
    relation.keys.first().map(|key| key.columns.clone()).unwrap_or_default()
}

fn ordered(relation: &Relation, column: &Column) -> bool {
    column.of.dimensions == 0 && ORDERED.contains(&relation.types.base_name(column.of))
}
