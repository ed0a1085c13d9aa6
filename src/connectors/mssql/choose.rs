//! Picks how changes of a table are found, and says why.
//!
//! `auto` goes by what loses least: Change Tracking, change tables and histories see everything, a row
//! version all but deletes, a timestamp what its writers set, a key what is new. What is left is to read
//! the table each time.

use super::discover::{Column, Relation};
use super::types::TypeOf;
use crate::clients::mssql::literal;
use crate::connectors::sql::named_for_change;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ChangeDetection, ReadRequest};
use crate::table::CursorCandidate;

/// What was picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// Never `Auto`.
    pub(super) change: ChangeDetection,
    pub(super) cursor: Option<Cursor>,
    pub(super) notes: Vec<String>,
}

/// A cursor column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) name: String,
    pub(super) of: TypeOf,
    pub(super) order: Order,
    pub(super) not_null: bool,
    pub(super) indexed: bool,
}

/// What a cursor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Time,
    /// A number, as from an identity.
    Number,
    /// A row version.
    Version,
}

impl Cursor {
    fn of(column: &Column) -> Option<Self> {
        let order = match column.of.base.as_str() {
            "datetime" | "smalldatetime" | "datetime2" | "datetimeoffset" => Order::Time,
            "tinyint" | "smallint" | "int" | "bigint" => Order::Number,
            "timestamp" => Order::Version,
            _ => return None,
        };
        Some(Self {
            name: column.name.clone(),
            of: column.of.clone(),
            order,
            not_null: column.not_null || order == Order::Version,
            indexed: column.indexed,
        })
    }
}

/// Ways that see deletes too, the best first.
const COMPLETE: [ChangeDetection; 3] =
    [ChangeDetection::Tracking, ChangeDetection::Log, ChangeDetection::Temporal];

/// What the request says, else what the catalog offers. `snapshot` says whether the database allows
/// SNAPSHOT isolation, without which what the server recorded cannot be read correctly.
pub(super) fn choose(relation: &Relation, request: &ReadRequest, snapshot: bool) -> Result<Choice> {
    let plain = |change, notes| Ok(Choice { change, cursor: None, notes });
    let change = request.change;
    if change == ChangeDetection::Full {
        return plain(change, Vec::new());
    }
    if change == ChangeDetection::Trigger {
        let message = "SQL Server gets no triggers of ours: Change Tracking does the same";
        return Err(Error::new(ErrorKind::Config, message)
            .with("table", &relation.id)
            .hint("use `change: tracking`; `frazil setup` switches it on"));
    }
    if COMPLETE.contains(&change) {
        return match unusable(change, relation, request, snapshot) {
            None => plain(change, Vec::new()),
            Some((why, remedy)) => {
                Err(Error::new(ErrorKind::Config, why).with("table", &relation.id).hint(remedy))
            }
        };
    }
    let mut passed_over = Vec::new();
    if change == ChangeDetection::Auto && request.cursor.is_none() {
        for change in COMPLETE.into_iter().filter(|change| is_on(*change, relation)) {
            let name = called(change);
            match unusable(change, relation, request, snapshot) {
                None => {
                    passed_over
                        .insert(0, format!("changes are found by {name}, which is on: deletes are seen too"));
                    return plain(change, passed_over);
                }
                Some((why, remedy)) => {
                    passed_over.push(format!("{name} is on and not used: {why}; {remedy}"))
                }
            }
        }
    }
    let mut choice = match &request.cursor {
        Some(name) => named(relation, request, name)?,
        None => found(relation, request)?,
    };
    choice.notes.extend(passed_over);
    let Some(cursor) = &choice.cursor else { return Ok(choice) };
    if !cursor.indexed {
        choice.notes.push(format!(
            "no index begins with `{}`: every pass reads the whole table to find what changed",
            cursor.name
        ));
    }
    if request.keyed {
        let name = &cursor.name;
        choice.notes.push(match choice.change {
            ChangeDetection::Id => format!(
                "`{name}` finds new rows only: updates and deletes are not seen; use `change: full`, or switch Change Tracking on"
            ),
            _ => "deletes leave no trace in a cursor; `change: tracking` and `change: full` see them".to_owned(),
        });
    }
    Ok(choice)
}

/// What people call it.
fn called(change: ChangeDetection) -> &'static str {
    match change {
        ChangeDetection::Log => "Change Data Capture",
        ChangeDetection::Temporal => "the history table",
        _ => "Change Tracking",
    }
}

/// Whether the database records changes of a table in this way.
fn is_on(change: ChangeDetection, relation: &Relation) -> bool {
    match change {
        ChangeDetection::Log => relation.captured,
        ChangeDetection::Temporal => relation.temporal,
        _ => relation.tracked,
    }
}

/// Why what the server records cannot be used, and what to do.
fn unusable(
    change: ChangeDetection,
    relation: &Relation,
    request: &ReadRequest,
    snapshot: bool,
) -> Option<(String, String)> {
    let (name, table) = (called(change), relation.quoted());
    if !is_on(change, relation) {
        return Some(match change {
            ChangeDetection::Log => (
                "Change Data Capture is not on for this table".to_owned(),
                format!("run `EXEC sys.sp_cdc_enable_db` once, then `{}`", enable(relation, None)),
            ),
            ChangeDetection::Temporal => (
                "this table has no history: it is not system-versioned".to_owned(),
                "give it a period and `SYSTEM_VERSIONING = ON`, or use `change: tracking`".to_owned(),
            ),
            _ => (
                "Change Tracking is not on for this table".to_owned(),
                format!(
                    "run `ALTER DATABASE CURRENT SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON)` once, then `ALTER TABLE {table} ENABLE CHANGE_TRACKING`"
                ),
            ),
        });
    }
    if !snapshot {
        return Some((
            format!("{name} is only right under SNAPSHOT isolation, which the database does not allow"),
            "run `ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON`".to_owned(),
        ));
    }
    let own = relation.primary_key().unwrap_or_default();
    let same = own.len() == request.key.len() && own.iter().all(|column| request.key.contains(column));
    if !request.keyed || !same || own.is_empty() {
        return Some((
            format!("{name} is read by the primary key, and the stream goes by another key, or by none"),
            format!("use `mode: merge` with `primary_key: [{}]`", own.join(", ")),
        ));
    }
    if change == ChangeDetection::Log { uncaptured(relation, request) } else { None }
}

/// Why the change tables do not have what is wanted, and what to do.
fn uncaptured(relation: &Relation, request: &ReadRequest) -> Option<(String, String)> {
    let columns = request_columns(relation, request);
    let Some(newest) = relation.instances.first() else {
        return Some((
            "the user may not see the change tables".to_owned(),
            "run `GRANT SELECT ON SCHEMA::cdc TO <user>`".to_owned(),
        ));
    };
    let computed = |name: &&str| relation.column(name).is_some_and(|column| column.generated);
    if let Some(name) = columns.iter().find(|name| computed(name)) {
        return Some((
            format!("the server computes `{name}`, and Change Data Capture has NULL in its place"),
            "list the other columns in `columns`, or use `change: tracking`".to_owned(),
        ));
    }
    if relation.instances.iter().any(|instance| instance.covers(&columns)) {
        return None;
    }
    let missing = columns.into_iter().find(|column| !newest.covers(&[column])).unwrap_or_default();
    let more = enable(relation, Some(&format!("{}_{}_new", relation.id.schema_or("dbo"), relation.id.name)));
    Some((
        format!("no capture instance has the column `{missing}`"),
        format!(
            "run `{more}` (a table may have two instances: the older one goes by `sys.sp_cdc_disable_table` when a pass has gone over), or leave the column out of `columns`"
        ),
    ))
}

/// The columns that a request asks for, its key among them.
pub(super) fn request_columns<'a>(relation: &'a Relation, request: &'a ReadRequest) -> Vec<&'a str> {
    let all = || relation.columns.iter().map(|column| column.name.as_str()).collect();
    let mut columns: Vec<&str> =
        request.columns.as_ref().map_or_else(all, |names| names.iter().map(String::as_str).collect());
    columns.extend(relation.primary_key().unwrap_or_default().iter().map(String::as_str));
    columns
}

/// The statement that makes the server capture a table's changes.
pub(super) fn enable(relation: &Relation, instance: Option<&str>) -> String {
    let (schema, name) = (literal(relation.id.schema_or("dbo")), literal(&relation.id.name));
    let instance =
        instance.map(|name| format!(", @capture_instance = {}", literal(name))).unwrap_or_default();
    format!(
        "EXEC sys.sp_cdc_enable_table @source_schema = {schema}, @source_name = {name}, @role_name = NULL{instance}"
    )
}

fn named(relation: &Relation, request: &ReadRequest, name: &str) -> Result<Choice> {
    let column = relation.named(name)?;
    let refuse = |message: String| {
        let error = Error::new(ErrorKind::Config, message).with("column", name).with("table", &relation.id);
        let offers = offers(relation);
        if offers.is_empty() {
            error.hint("use `change: full`")
        } else {
            error.hint(format!("candidates are {offers}"))
        }
    };
    let Some(cursor) = Cursor::of(column) else {
        return Err(refuse(format!("a column of type {} cannot be a cursor", column.of.written())));
    };
    use ChangeDetection as C;
    let change = match (request.change, cursor.order) {
        (C::Auto | C::Timestamp, Order::Time) => C::Timestamp,
        (C::Version, Order::Number) => C::Version,
        (C::Auto | C::Id, Order::Number) => C::Id,
        (C::Auto | C::Rowversion, Order::Version) => C::Rowversion,
        (wanted, _) => {
            return Err(refuse(format!(
                "`change: {}` does not go with a column of type {}",
                wanted.name(),
                column.of.written()
            )));
        }
    };
    Ok(Choice { change, cursor: Some(cursor), notes: Vec::new() })
}

fn found(relation: &Relation, request: &ReadRequest) -> Result<Choice> {
    use ChangeDetection as C;
    let best = relation
        .columns
        .iter()
        .filter_map(|column| {
            let cursor = Cursor::of(column)?;
            let (rank, change) = match (relation.candidate(column), cursor.order) {
                (Some(CursorCandidate::Version), _) => (3, C::Rowversion),
                (Some(CursorCandidate::Timestamp), _) => (2, C::Timestamp),
                (Some(CursorCandidate::Id), _) => (1, C::Id),
                (None, Order::Number) if request.change == C::Version && is_version(column) => {
                    (0, C::Version)
                }
                (None, _) => return None,
            };
            let wanted = matches!(request.change, C::Auto) || request.change == change;
            wanted.then_some((rank, change, cursor, column))
        })
        .max_by_key(|(rank, _, cursor, column)| {
            let name = std::cmp::Reverse(named_for_change(&column.name));
            (*rank, name, cursor.indexed, std::cmp::Reverse(column.number))
        });
    let Some((_, change, cursor, _)) = best else {
        if request.change == C::Auto {
            let note = "no column tells what changed: the whole table is read in every pass".to_owned();
            return Ok(Choice { change: C::Full, cursor: None, notes: vec![note] });
        }
        let message = format!("no column can serve `change: {}`", request.change.name());
        return Err(Error::new(ErrorKind::Config, message)
            .with("table", &relation.id)
            .hint("name it as `cursor`, or use `change: full`"));
    };
    let indexed = if cursor.indexed { "an index serves it" } else { "no index serves it" };
    let why = match change {
        C::Rowversion => "every change raises it",
        C::Timestamp => "by its name every change sets it",
        C::Version => "by its name every change raises it",
        _ => "it is an increasing key",
    };
    let note = format!("changes are found by `{}`: {why}, {indexed}", cursor.name);
    Ok(Choice { change, cursor: Some(cursor), notes: vec![note] })
}

/// A version column is only believed when the user asks for one: it has to grow over the whole table.
fn is_version(column: &Column) -> bool {
    let name = column.name.to_ascii_lowercase();
    name == "version" || name.ends_with("_version")
}

fn offers(relation: &Relation) -> String {
    let names = relation.columns.iter().filter(|column| relation.candidate(column).is_some());
    names.map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", ")
}
