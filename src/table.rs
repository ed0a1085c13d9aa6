//! How tables, columns and keys are named and described, whatever database they live in.

use std::fmt;
use std::str::FromStr;

use arrow::datatypes::{Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Arrow field metadata: the column's type as its own database writes it, prefixed by the
/// connector: `postgres:numeric(12,2)`. A target of the same kind restores it exactly.
pub const SOURCE_TYPE: &str = "frazil:source-type";

/// Arrow field metadata: the id by which the source knows a column through renames
/// (Postgres `attnum`, SQL Server `column_id`).
pub const SOURCE_COLUMN_ID: &str = "frazil:source-column-id";

/// Arrow field metadata, in both directions: what rows that were there before have in a column that was
/// added, as text (`5`, `1.50`, `2020-01-01T10:00:00+00:00`). Absent where they have NULL.
pub const ADDED_DEFAULT: &str = "frazil:added-default";
/// Arrow field metadata: the id by which the lake knows a column through renames, unlike that of any
/// other table. Targets note it, and so tell a renamed column from a new one.
pub const LAKE_COLUMN_ID: &str = "frazil:lake-column-id";

/// Last column of a batch whose rows carry their own operation: `Int8`, the values of
/// [`Op`](crate::delta::Op).
pub const OP_COLUMN: &str = "_op";

/// In changes that say what each row was before, the column before [`OP_COLUMN`]: `Int32`, 1 where there was
/// such a row.
pub const HAS_BASE: &str = "_has_base";

/// In such changes, the column before [`HAS_BASE`]: the key as a text by which the row can be found again.
pub const KEY_TEXT: &str = "_key_text";

/// In such changes, the name of the column with the older value of a column.
pub fn base_column(name: &str) -> String {
    format!("_base_{name}")
}

/// Last column of a batch in which some rows have a value that their column cannot hold: `Utf8`, why; NULL
/// for all others. In such a row other columns than the key may be NULL, whatever the schema says.
pub const UNFIT_COLUMN: &str = "_unfit";

/// The version of the Iceberg format that a table is written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FormatVersion {
    /// Position-delete files; timestamps to the microsecond. What every reader knows.
    #[default]
    V2,
    /// Deletion vectors, row lineage, defaults of columns, timestamps to the nanosecond.
    V3,
}

impl FormatVersion {
    /// As a configuration says it.
    pub fn number(self) -> u8 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    /// The version of that number, if this build writes it.
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::V2, Self::V3].into_iter().find(|version| u64::from(version.number()) == number)
    }
}

/// The name of a table: a schema (SQLite: the attached database) where there is one, and a name. Case and all other characters
/// are kept as they are; quoting is each connector's own business.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId {
    /// The schema or namespace, `None` where the database's default is meant.
    pub schema: Option<String>,
    /// The table's own name.
    pub name: String,
}

impl TableId {
    /// A table in a schema.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: Some(schema.into()), name: name.into() }
    }

    /// A table in the default schema.
    pub fn bare(name: impl Into<String>) -> Self {
        Self { schema: None, name: name.into() }
    }

    /// The schema, or `default` where none was said.
    pub fn schema_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.schema.as_deref().unwrap_or(default)
    }

    /// The name as it is read back, whatever characters it has: parts with dots or quotes stand in quotes.
    pub fn written(&self) -> String {
        let part = |part: &str| match part.contains(['.', '"']) {
            true => format!("\"{}\"", part.replace('"', "\"\"")),
            false => part.to_owned(),
        };
        match &self.schema {
            Some(schema) => format!("{}.{}", part(schema), part(&self.name)),
            None => part(&self.name),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// `schema.name` or `name`; the first dot divides. Double quotes protect a part that has a dot itself.
impl FromStr for TableId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = vec![String::new()];
        let mut quoted = false;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    last(&mut parts).push('"');
                }
                '"' => quoted = !quoted,
                '.' if !quoted && parts.len() == 1 => parts.push(String::new()),
                c => last(&mut parts).push(c),
            }
        }
        if quoted || parts.iter().any(String::is_empty) {
            return Err(Error::new(ErrorKind::Config, format!("`{text}` is not a table name"))
                .hint("write `schema.table`; quote a part that contains a dot: `\"odd.schema\".table`"));
        }
        let name = parts.pop().expect("split yields at least one part");
        Ok(Self { schema: parts.pop(), name })
    }
}

fn last(parts: &mut [String]) -> &mut String {
    parts.last_mut().expect("never empty")
}

/// What a discovered relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// A plain table.
    Table,
    /// A table divided into partitions, read through its root.
    PartitionedTable,
    /// A view; it has no physical order and no key of its own.
    View,
    /// A materialised view.
    MaterializedView,
    /// A table that lives elsewhere.
    ForeignTable,
}

/// A relation as its database describes it.
#[derive(Debug, Clone, Serialize)]
pub struct TableDescription {
    /// Its name, with the schema always filled in.
    pub id: TableId,
    /// What it is.
    pub kind: TableKind,
    /// Its columns in their order.
    pub columns: Vec<ColumnDescription>,
    /// Its unique keys, the primary key first.
    pub keys: Vec<KeyDescription>,
    /// About how many rows, from the database's statistics; `None` when it has none.
    pub rows: Option<u64>,
    /// About how many bytes on the source's disk.
    pub bytes: Option<u64>,
}

impl TableDescription {
    /// The primary key's columns, or `None`.
    pub fn primary_key(&self) -> Option<&[String]> {
        self.keys.iter().find(|key| key.primary).map(|key| key.columns.as_slice())
    }

    /// The column of that exact name.
    pub fn column(&self, name: &str) -> Option<&ColumnDescription> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The Arrow schema in which rows of this table travel.
    pub fn arrow_schema(&self) -> SchemaRef {
        Schema::new(self.columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>()).into()
    }
}

/// One column as its database describes it.
#[derive(Debug, Clone, Serialize)]
pub struct ColumnDescription {
    /// Its name.
    pub name: String,
    /// Its type as the database writes it: `numeric(12,2)`.
    pub source_type: String,
    /// How it travels: name, Arrow type, nullability, [`SOURCE_TYPE`] and [`SOURCE_COLUMN_ID`].
    #[serde(skip)]
    pub field: Field,
    /// How exactly it travels.
    pub fidelity: Fidelity,
    /// Computed by the database from other columns.
    pub generated: bool,
    /// Filled by the database when nothing is given (identity, serial).
    pub identity: bool,
    /// Whether an index begins with this column.
    pub indexed: bool,
    /// If it could serve as a cursor, how well.
    pub cursor: Option<CursorCandidate>,
}

/// What `frazil check` says of a column before a row moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fidelity", content = "note")]
pub enum Fidelity {
    /// Every value arrives as it is.
    Exact,
    /// Every value arrives without loss, but in another type: text of an `inet`, say.
    Represented(String),
    /// Some values cannot be carried; the note says which and what the policy does with them.
    Limited(String),
}

/// Why a column could be a cursor. Higher ranks are picked first by `change: auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CursorCandidate {
    /// An increasing key: sees inserts only.
    Id,
    /// A version or row-version number that grows with every change.
    Version,
    /// A timestamp that by its name is kept up to date.
    Timestamp,
}

/// A unique key.
#[derive(Debug, Clone, Serialize)]
pub struct KeyDescription {
    /// Its name in the database.
    pub name: String,
    /// Its columns, in index order.
    pub columns: Vec<String>,
    /// Whether it is the primary key.
    pub primary: bool,
}
