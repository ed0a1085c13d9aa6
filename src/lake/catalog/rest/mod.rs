//! A catalog behind Iceberg's REST protocol: Polaris, Lakekeeper, Nessie, Unity, Glue, S3 Tables, …
//!
//! ```text
//! options ─▶ Client ── login (auth, sigv4), another try (client), errors
//!              │
//!  GET  config │ namespaces, tables        who is there (server)
//!  POST        │ tables                    create: a token in the properties says whose it is
//!  POST        │ tables/t                  commit: what the table shows decides (commit)
//!              └──▶ config of a table ─▶ Stores: address and credentials of its files (vended)
//! ```
//!
//! The server holds the metadata file and makes the swap. A namespace is the schema of our names, its
//! levels divided by dots. What a server may do against the protocol (answer "made" for a table that
//! was there) does not hurt: a table is ours if it carries what we gave it.

mod auth;
mod client;
mod commit;
mod errors;
mod names;
mod options;
mod server;
mod sigv4;
#[cfg(test)]
mod tests;
mod vended;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg::table::Table;
use iceberg::{NamespaceIdent, Runtime, TableCreation, TableIdent, TableRequirement, TableUpdate};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{Catalog, CatalogSettings, exists, files, no_table};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::DEFAULT_NAMESPACE;
use crate::lake::storage::{Stores, file_io, iceberg_error};
use crate::table::TableId;
use client::{Call, Outcome, Pace};
use options::Options;
use server::{LISTINGS, Server};

/// Table property: the request that made the table, so that an answer that got lost can be settled.
const CREATION: &str = "frazil.creation";

/// A catalog that is a server. It is asked for nothing before something is wanted of it.
pub struct Rest {
    options: Options,
    stores: Arc<Stores>,
    pace: Pace,
    open: OnceCell<Open>,
}

/// A catalog whose configuration is known.
struct Open {
    server: Arc<Server>,
    stores: Arc<Stores>,
    file_io: iceberg::io::FileIO,
    runtime: Runtime,
}

impl Rest {
    /// The catalog at an address. `warehouse` is its name for the lake.
    pub fn new(settings: &CatalogSettings, warehouse: &str, stores: Arc<Stores>) -> Result<Self> {
        let options = Options::new(settings, warehouse, stores.options())?;
        Ok(Self { options, stores, pace: client::PACE, open: OnceCell::new() })
    }

    async fn open(&self) -> Result<&Open> {
        let open = || async {
            let server = Server::connect(&self.options, self.pace).await?;
            Ok::<_, Error>(Open {
                server: Arc::new(server),
                file_io: file_io(&self.stores),
                stores: self.stores.clone(),
                runtime: Runtime::try_current().map_err(iceberg_error)?,
            })
        };
        let open = self.open.get_or_try_init(open).await;
        open.map_err(|error| error.with("catalog", &self.options.address))
    }
}

impl Open {
    async fn load(&self, namespace: &[String], name: &str) -> Result<Option<Table>> {
        let path = self.server.table_path(namespace, name);
        let Some(loaded) = self.server.client.read::<wire::Loaded>(&self.server.load_call(&path)).await?
        else {
            return Ok(None);
        };
        let id = TableIdent::new(
            NamespaceIdent::from_vec(namespace.to_vec()).map_err(iceberg_error)?,
            name.to_owned(),
        );
        self.vend(&path, &loaded)?;
        self.table(&id, loaded).map(Some)
    }

    /// Tells the stores how the table's files are reached.
    fn vend(&self, path: &str, loaded: &wire::Loaded) -> Result<()> {
        let location = loaded.metadata.get("location").and_then(|text| text.as_str()).unwrap_or_default();
        for (prefix, vended) in
            vended::vended(&self.server.store_options, &self.server.everywhere, location, loaded)?
        {
            let vendor = vended::OfTable {
                server: self.server.clone(),
                table: path.to_owned(),
                prefix: prefix.clone(),
                config: loaded.config.clone(),
            };
            self.stores.vend(&prefix, vended, Arc::new(vendor))?;
        }
        Ok(())
    }

    fn table(&self, id: &TableIdent, loaded: wire::Loaded) -> Result<Table> {
        let file = loaded.metadata_location.unwrap_or_default();
        let metadata = files::parse(&file, loaded.metadata.to_string().as_bytes())?;
        let table = Table::builder()
            .file_io(self.file_io.clone())
            .identifier(id.clone())
            .metadata(metadata)
            .runtime(self.runtime.clone())
            .metadata_location(file)
            // Our own reading does not go through it.
            .disable_cache();
        table.build().map_err(iceberg_error)
    }

    async fn create(&self, id: &TableId, wanted: &TableMetadata) -> Result<Table> {
        let (namespace, name) = (levels(id), id.name.as_str());
        let request = Uuid::new_v4().to_string();
        let mut properties = wanted.properties().clone();
        properties.insert(CREATION.to_owned(), request.clone());
        properties.insert("format-version".to_owned(), (wanted.format_version() as u8).to_string());
        let order = wanted.default_sort_order();
        let body = wire::CreateTable {
            name: name.to_owned(),
            schema: wanted.current_schema().as_ref().clone(),
            partition_spec: wanted.default_partition_spec().as_ref().clone().into_unbound(),
            write_order: (!order.is_unsorted()).then(|| order.as_ref().clone()),
            properties,
        };
        let path = format!("namespaces/{}/tables", self.server.namespace_path(&namespace));
        let call = self.server.delegated(Call::post("create a table", path, &body)?);
        let mut tries = self.server.client.tries();
        let mut namespace_made = false;
        loop {
            let (error, retry_after) = match self.server.client.once(&call).await? {
                // The answer may be about a table that was there: what it holds is looked at below.
                Outcome::Done(_) => {
                    (Error::new(ErrorKind::Transient, "a table that was made is not there"), None)
                }
                Outcome::Lost(error) | Outcome::Unsent(error) => (error, None),
                Outcome::Refused { status, said, retry_after } => {
                    let error = errors::refused("create a table", status, &said);
                    match status.as_u16() {
                        404 if !namespace_made => {
                            self.server.create_namespace(&namespace).await?;
                            namespace_made = true;
                            continue;
                        }
                        // Whoever makes the namespace at the same time may not be done with it.
                        404 | 409 => {}
                        _ if client::may_pass(status) => {}
                        _ => return Err(error),
                    }
                    (error, retry_after)
                }
            };
            if let Some(found) = self.load(&namespace, name).await? {
                let ours = found.metadata().properties().get(CREATION) == Some(&request);
                return if ours { as_wanted(found, wanted) } else { Err(exists(id)) };
            }
            tries.pause(error, retry_after).await?;
        }
    }
}

#[async_trait]
impl Catalog for Rest {
    async fn tables(&self) -> Result<Vec<TableId>> {
        let open = self.open().await?;
        // A dot divides levels in our names: what has one in a level cannot be named.
        let namespaces = open.server.all_namespaces().await?.into_iter();
        let plain = namespaces.filter(|levels| levels.iter().all(|level| !level.contains('.')));
        let tables = stream::iter(plain)
            .map(|namespace| open.server.tables_in(namespace))
            .buffered(LISTINGS)
            .try_collect::<Vec<_>>()
            .await?;
        let mut tables: Vec<TableId> = tables.into_iter().flatten().collect();
        tables.sort();
        Ok(tables)
    }

    async fn load(&self, id: &TableId) -> Result<Option<Table>> {
        let open = self.open().await?;
        open.load(&levels(id), &id.name).await.map_err(|error| error.with("table", id))
    }

    async fn create(&self, id: &TableId, mut creation: TableCreation) -> Result<Table> {
        // Built here first: ids as every server would give them, so that ours hold whether the server
        // gives ids anew or keeps what it gets. Where the table is, the server says.
        creation.location = Some("file:///nowhere".to_owned());
        let wanted = TableMetadataBuilder::from_table_creation(creation)
            .and_then(TableMetadataBuilder::build)
            .map_err(|error| iceberg_error(error).with("table", id))?
            .metadata;
        self.open().await?.create(id, &wanted).await.map_err(|error| error.with("table", id))
    }

    async fn commit(
        &self,
        base: &Table,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<Table> {
        commit::commit(self.open().await?, base, &requirements, &updates).await
    }

    async fn check(&self) -> Result<()> {
        self.open().await?.server.outermost().await.map(drop)
    }

    async fn drop_table(&self, id: &TableId) -> Result<bool> {
        let open = self.open().await?;
        names::drop_table(open, id).await.map_err(|error| error.with("table", id))
    }

    async fn rename_table(&self, from: &TableId, to: &TableId) -> Result<()> {
        let open = self.open().await?;
        names::rename_table(open, from, to).await.map_err(|error| error.with("table", from))
    }
}

fn levels(id: &TableId) -> Vec<String> {
    id.schema_or(DEFAULT_NAMESPACE).split('.').map(str::to_owned).collect()
}

/// A new table whose columns have the ids that our properties speak of.
fn as_wanted(made: Table, wanted: &TableMetadata) -> Result<Table> {
    let (got, schema) = (made.metadata().current_schema(), wanted.current_schema());
    if got.as_struct() != schema.as_struct() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the catalog made other columns than it was asked for",
        )
        .hint("drop the new table; this catalog cannot hold tables with these columns"));
    }
    if made.metadata().format_version() != wanted.format_version() {
        return Err(Error::new(ErrorKind::Unsupported, "the catalog made a table of another format version")
            .with("wanted", wanted.format_version() as u8)
            .with("made", made.metadata().format_version() as u8)
            .hint("drop the new table, and ask for a format version that the catalog knows"));
    }
    Ok(made)
}
