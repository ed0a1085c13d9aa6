//! A catalog in SQLite or Postgres, in the layout that Java's JDBC catalog and pyiceberg share.
//!
//! ```text
//! iceberg_tables (catalog_name, table_namespace, table_name) ─▶ metadata_location
//!                                                               previous_metadata_location
//! commit:  write 00042-<uuid>.metadata.json
//!          update … set metadata_location = new … where … and metadata_location = old     one row: committed
//! ```
//!
//! A new metadata file has a name that was never used before. That makes the swap safe to repeat: the
//! statement finds the old name once at most. So when an answer gets lost, we look whether the row
//! (or the log of what it now names) holds our file, and if not, repeat the very same statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use iceberg::{TableCreation, TableRequirement, TableUpdate};
use uuid::Uuid;

use super::files::{Files, created, parse, updated};
use super::{Catalog, CatalogSettings, MOVES, exists, location, no_table};
use crate::clients::text::TextDatabase;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::DEFAULT_NAMESPACE;
use crate::lake::storage::{Stores, absolute, store_error};
use crate::table::TableId;

/// `catalog_name`, if nobody says: pyiceberg's own default.
const DEFAULT_NAME: &str = "default";
/// Times that a swap without an answer is tried before its outcome is left open.
const TRIES: u32 = 5;
/// Pause before the second try; it doubles. All tries together outlast the restart of a server.
const PAUSE: Duration = Duration::from_millis(250);

const TABLES: &str = "iceberg_tables";
const NAMESPACES: &str = "iceberg_namespace_properties";
/// Told apart by their presence: version 1 of the layout has it, version 0 has not.
const TYPE_COLUMN: &str = "iceberg_type";

const CREATE_TABLES: &str = "CREATE TABLE IF NOT EXISTS iceberg_tables (\
    catalog_name VARCHAR(255) NOT NULL, \
    table_namespace VARCHAR(255) NOT NULL, \
    table_name VARCHAR(255) NOT NULL, \
    metadata_location VARCHAR(1000), \
    previous_metadata_location VARCHAR(1000), \
    iceberg_type VARCHAR(5), \
    PRIMARY KEY (catalog_name, table_namespace, table_name))";
const CREATE_NAMESPACES: &str = "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (\
    catalog_name VARCHAR(255) NOT NULL, \
    namespace VARCHAR(255) NOT NULL, \
    property_key VARCHAR(255) NOT NULL, \
    property_value VARCHAR(1000), \
    PRIMARY KEY (catalog_name, namespace, property_key))";
/// What Java and pyiceberg write into a namespace that has no other property.
const INSERT_NAMESPACE: &str = "INSERT INTO iceberg_namespace_properties \
    (catalog_name, namespace, property_key, property_value) VALUES ($1, $2, 'exists', 'true') \
    ON CONFLICT DO NOTHING";

/// The layouts that are out there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// The tables are not there yet.
    Absent,
    /// Without views.
    V0,
    /// With `iceberg_type`.
    V1,
}

/// A statement in both layouts.
macro_rules! by_layout {
    ($layout:expr, $sql:literal) => {
        match $layout {
            Layout::V1 => concat!($sql, " AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)"),
            Layout::V0 | Layout::Absent => $sql,
        }
    };
}

/// A catalog that is a table in a database.
pub struct Sql {
    name: String,
    warehouse: String,
    database: TextDatabase,
    files: Files,
    /// [`Layout`] once it is known; the tables do not go away again.
    layout: AtomicU8,
}

impl Sql {
    /// The catalog in a database, which is dialled when it is first asked. SQLite's file and the
    /// catalog's tables are made with the first table.
    pub fn new(settings: &CatalogSettings, warehouse: &str, stores: Arc<Stores>) -> Result<Self> {
        let connection = Connection::parse("catalog", &settings.url)?;
        if let Some(option) = settings.options.keys().next() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`{option}` is not an option of this catalog"),
            )
            .hint("a catalog in a database takes its `url` and a `name`"));
        }
        let warehouse = absolute(warehouse)?;
        stores.resolve(&warehouse)?;
        Ok(Self {
            name: settings.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned()),
            warehouse,
            database: TextDatabase::new(&connection)?,
            files: Files::new(stores)?,
            layout: AtomicU8::new(Layout::Absent as u8),
        })
    }

    async fn layout(&self) -> Result<Layout> {
        let known = self.layout.load(Ordering::Relaxed);
        if known != Layout::Absent as u8 {
            return Ok(if known == Layout::V0 as u8 { Layout::V0 } else { Layout::V1 });
        }
        let columns = self.database.columns(TABLES).await?;
        let layout = match columns.iter().any(|column| column == TYPE_COLUMN) {
            true => Layout::V1,
            false if columns.is_empty() => Layout::Absent,
            false => Layout::V0,
        };
        self.layout.store(layout as u8, Ordering::Relaxed);
        Ok(layout)
    }

    /// The layout, made if there is none: the tables last, so that whoever sees them sees both.
    async fn ready(&self) -> Result<Layout> {
        for (table, create) in [(NAMESPACES, CREATE_NAMESPACES), (TABLES, CREATE_TABLES)] {
            if self.database.columns(table).await?.is_empty()
                && let Err(error) = self.database.execute(create, &[]).await
                // Two that create at once can get in each other's way even with IF NOT EXISTS.
                && self.database.columns(table).await?.is_empty()
            {
                return Err(error);
            }
        }
        self.layout().await
    }

    /// The metadata file that a table's row names.
    async fn pointer(&self, id: &TableId) -> Result<Option<String>> {
        let layout = self.layout().await?;
        if layout == Layout::Absent {
            return Ok(None);
        }
        let sql = by_layout!(
            layout,
            "SELECT metadata_location FROM iceberg_tables \
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3"
        );
        let rows = self.database.query(sql, &self.key(id)).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    fn key<'a>(&'a self, id: &'a TableId) -> [&'a str; 3] {
        [&self.name, id.schema_or(DEFAULT_NAMESPACE), &id.name]
    }

    async fn read(&self, id: &TableId, file: &str) -> Result<TableMetadata> {
        let bytes = self.files.get(file).await?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the table's metadata file is missing")
                .with("file", file)
                .hint("restore it from a backup; the catalog's row names it")
        });
        bytes.and_then(|bytes| parse(file, &bytes)).map_err(|error| {
            error.with("table", id).hint("restore the file, or point the catalog's row at an older one")
        })
    }

    /// Where a new table goes. A place that holds files already belongs to a table that was renamed or
    /// dropped: cleaning up one table must never meet the files of another.
    async fn free_location(&self, id: &TableId) -> Result<String> {
        let plain = location(&self.warehouse, id);
        let (store, path) = self.files.stores().resolve(&plain)?;
        let first = store.list(Some(&path)).next().await;
        match first.transpose().map_err(|source| store_error("list a directory", &plain, source))? {
            None => Ok(plain),
            Some(_) => Ok(format!("{plain}-{}", Uuid::new_v4().simple())),
        }
    }

    /// Runs a statement that does no harm twice until its outcome is known: whether the row names `new`
    /// by it. `old` is what it named before.
    async fn settle(
        &self,
        statement: &'static str,
        params: &[&str],
        id: &TableId,
        old: Option<&str>,
        new: &str,
    ) -> Result<bool> {
        let (mut doubtful, mut pause) = (false, PAUSE);
        for last in (1..=TRIES).map(|number| number == TRIES) {
            let failed = match self.database.execute(statement, params).await {
                Ok(1) => return Ok(true),
                Ok(_) if !doubtful => return Ok(false),
                // The first try may be the reason that this one found nothing to do.
                Ok(_) => None,
                Err(error) => Some(error),
            };
            doubtful = true;
            match (self.came_through(id, old, new).await, failed) {
                (Ok(Some(outcome)), _) => return Ok(outcome),
                (Ok(None), Some(error)) if last || error.kind() != ErrorKind::Transient => return Err(error),
                (Err(error), _) if last => {
                    return Err(Error::new(
                        ErrorKind::Transient,
                        "the catalog's database went away during a commit, and it is not known whether the \
                         commit arrived",
                    )
                    .hint("run again: the next run looks, and goes on from what the table holds")
                    .because(error));
                }
                _ => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(Error::new(ErrorKind::Transient, "the catalog's row does not keep still").with("table", id))
    }

    /// Whether a swap from `old` to `new` came through: `None` while the row still names the old file.
    async fn came_through(&self, id: &TableId, old: Option<&str>, new: &str) -> Result<Option<bool>> {
        let now = self.pointer(id).await?;
        if now.as_deref() == Some(new) {
            return Ok(Some(true));
        }
        if now.as_deref() == old {
            return Ok(None);
        }
        // Somebody has moved it on: from ours, or from the old one. What it remembers says from which.
        let Some(now) = now else {
            return Err(Error::new(ErrorKind::Transient, "the table was dropped or renamed meanwhile"));
        };
        let metadata = self.read(id, &now).await?;
        let remembers = |file: &str| metadata.metadata_log().iter().any(|entry| entry.metadata_file == file);
        match (remembers(new), old.is_none_or(remembers)) {
            (true, _) => Ok(Some(true)),
            (false, true) => Ok(Some(false)),
            (false, false) => {
                Err(Error::new(ErrorKind::Transient, "the table has moved too far to see what became of it"))
            }
        }
    }
}

#[async_trait]
impl Catalog for Sql {
    async fn check(&self) -> Result<()> {
        self.layout().await.map(drop)
    }

    async fn tables(&self) -> Result<Vec<TableId>> {
        let layout = self.layout().await?;
        if layout == Layout::Absent {
            return Ok(Vec::new());
        }
        let sql = by_layout!(
            layout,
            "SELECT table_namespace, table_name FROM iceberg_tables WHERE catalog_name = $1"
        );
        let rows = self.database.query(sql, &[&self.name]).await?;
        let mut tables: Vec<TableId> = rows
            .into_iter()
            .filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
                Ok([Some(namespace), Some(name)]) => Some(TableId::new(namespace, name)),
                _ => None,
            })
            .collect();
        // The database may have an order of its own.
        tables.sort();
        Ok(tables)
    }

    async fn load(&self, id: &TableId) -> Result<Option<Table>> {
        let Some(file) = self.pointer(id).await.map_err(|error| error.with("table", id))? else {
            return Ok(None);
        };
        let metadata = self.read(id, &file).await?;
        Ok(Some(self.files.table(id, file, metadata)?))
    }

    async fn create(&self, id: &TableId, creation: TableCreation) -> Result<Table> {
        let insert = match self.ready().await? {
            Layout::V1 => {
                "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, \
                 metadata_location, iceberg_type) VALUES ($1, $2, $3, $4, 'TABLE') ON CONFLICT DO NOTHING"
            }
            Layout::V0 | Layout::Absent => {
                "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, \
                 metadata_location) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
            }
        };
        if self.pointer(id).await?.is_some() {
            return Err(exists(id));
        }
        let metadata = created(id, creation, &self.free_location(id).await?)?;
        let file = next_file(metadata.location(), None);
        self.files.write(&file, &metadata).await?;
        let [catalog, namespace, name] = self.key(id);
        self.database.execute(INSERT_NAMESPACE, &[catalog, namespace]).await?;
        if self.settle(insert, &[catalog, namespace, name, &file], id, None, &file).await? {
            return self.files.table(id, file, metadata);
        }
        self.files.discard(&file).await;
        Err(exists(id))
    }

    async fn commit(
        &self,
        base: &Table,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<Table> {
        let ident = base.identifier();
        let id = TableId::new(ident.namespace().as_ref().join("."), ident.name());
        let swap = by_layout!(
            self.layout().await?,
            "UPDATE iceberg_tables SET metadata_location = $1, previous_metadata_location = $2 \
             WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5 AND metadata_location = $2"
        );
        let mut old = base.metadata_location().unwrap_or_default().to_owned();
        let mut newest = base.metadata().clone();
        for _ in 0..MOVES {
            let built = updated(newest, &old, &requirements, &updates)?;
            let new = next_file(built.metadata.location(), Some(&old));
            self.files.write(&new, &built.metadata).await?;
            let [catalog, namespace, name] = self.key(&id);
            let params = [&new, &old, catalog, namespace, name];
            if self.settle(swap, &params, &id, Some(&old), &new).await? {
                self.files.forget(&built).await;
                return self.files.table(&id, new, built.metadata);
            }
            self.files.discard(&new).await;
            old = self.pointer(&id).await?.ok_or_else(|| {
                Error::new(ErrorKind::Conflict, "the table was dropped or renamed").with("table", &id)
            })?;
            newest = self.read(&id, &old).await?;
        }
        Err(Error::new(ErrorKind::Conflict, "the table moves faster than this commit"))
    }

    async fn drop_table(&self, id: &TableId) -> Result<bool> {
        let layout = self.layout().await?;
        if layout == Layout::Absent {
            return Ok(false);
        }
        let sql = by_layout!(
            layout,
            "DELETE FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3"
        );
        Ok(self.database.execute(sql, &self.key(id)).await? == 1)
    }

    async fn rename_table(&self, from: &TableId, to: &TableId) -> Result<()> {
        let layout = self.layout().await?;
        if self.pointer(from).await?.is_none() {
            return Err(no_table(from));
        }
        if self.pointer(to).await?.is_some() {
            return Err(taken(to));
        }
        let [catalog, namespace, name] = self.key(from);
        let [_, new_namespace, new_name] = self.key(to);
        self.database.execute(INSERT_NAMESPACE, &[catalog, new_namespace]).await?;
        let sql = by_layout!(
            layout,
            "UPDATE iceberg_tables SET table_namespace = $1, table_name = $2 \
             WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5"
        );
        let params = [new_namespace, new_name, catalog, namespace, name];
        match self.database.execute(sql, &params).await {
            Ok(1) => Ok(()),
            Ok(_) => Err(no_table(from)),
            // The primary key: somebody took the name after our look.
            Err(error) if error.kind() == ErrorKind::Data => Err(taken(to).because(error)),
            Err(error) => Err(error),
        }
    }
}

fn taken(id: &TableId) -> Error {
    Error::new(ErrorKind::Conflict, "there is a table of that name already").with("table", id)
}

/// A file name that was never used: `00042-<uuid>.metadata.json` after number 41.
fn next_file(location: &str, previous: Option<&str>) -> String {
    let number = previous.map_or(0, |file| {
        let name = file.rsplit('/').next().unwrap_or_default().trim_start_matches('v');
        let digits = name.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().unwrap_or(0).saturating_add(1)
    });
    format!("{location}/metadata/{number:05}-{}.metadata.json", Uuid::new_v4())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_files_are_numbered_on() {
        let number = |previous: Option<&str>| {
            let file = next_file("s3://b/t", previous);
            let name =
                file.strip_prefix("s3://b/t/metadata/").unwrap().strip_suffix(".metadata.json").unwrap();
            let (number, uuid) = name.split_once('-').unwrap();
            assert!(Uuid::parse_str(uuid).is_ok());
            number.to_owned()
        };
        assert_eq!(number(None), "00000");
        assert_eq!(number(Some("s3://b/t/metadata/00041-6b7c.metadata.json")), "00042");
        assert_eq!(number(Some("s3://b/t/metadata/v7.metadata.json")), "00008");
        assert_eq!(number(Some("s3://b/t/metadata/odd.json")), "00001");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let stores = || Arc::new(Stores::default());
        let mut settings = CatalogSettings::from("sqlite:///tmp/c.db");
        settings.options.insert("token".into(), "secret".into());
        let error = Sql::new(&settings, "/tmp/lake", stores()).err().unwrap();
        assert_eq!(error.to_string(), "`token` is not an option of this catalog");
    }
}
