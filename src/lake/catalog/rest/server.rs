//! The server: what it says of itself, and what it is asked that is about no single table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};

use super::client::{self, Call, Client, Outcome, Pace};
use super::options::Options;
use super::sigv4::encode;
use super::{errors, vended, wire};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

/// Namespaces that are listed at a time.
pub(super) const LISTINGS: usize = 8;
/// What divides the levels of a namespace in an address, unless the server says otherwise.
const SEPARATOR: &str = "%1F";
/// A server that was never reached is waited for no longer than this: its address may be wrong.
const FIRST_CONTACT: Duration = Duration::from_secs(10);
const DELEGATION: &str = "x-iceberg-access-delegation";

/// A catalog's server, and what is known of it. Knows nothing of the stores: those who renew credentials
/// for them hold it.
pub(super) struct Server {
    pub(super) client: Client,
    separator: String,
    /// What the user says of the stores.
    pub(super) store_options: BTreeMap<String, String>,
    /// What the server says of the files of all tables.
    pub(super) everywhere: BTreeMap<String, String>,
    /// The server is asked to vend credentials.
    delegate: bool,
    pub(super) has_credentials_endpoint: bool,
}

impl Server {
    /// Asks the server for its configuration.
    pub(super) async fn connect(options: &Options, pace: Pace) -> Result<Self> {
        let mut client = Client::new(options)?;
        client.pace = Pace { give_up: pace.give_up.min(FIRST_CONTACT), ..pace };
        let mut call = Call::get("read the catalog's configuration", "config");
        if !options.warehouse.is_empty() {
            call = call.query("warehouse", encode(&options.warehouse));
        }
        let config: wire::Config = client.read(&call).await?.ok_or_else(|| {
            Error::new(ErrorKind::Config, "the catalog does not know the warehouse")
                .with("warehouse", &options.warehouse)
                .hint("`lake.warehouse` is the catalog's name for it: ask who runs the catalog")
        })?;
        client.pace = pace;
        let of = |map: &BTreeMap<String, Option<String>>, name: &str| map.get(name).cloned().flatten();
        let prefix = of(&config.overrides, "prefix")
            .or_else(|| options.get("prefix").map(str::to_owned))
            .or_else(|| of(&config.defaults, "prefix"));
        // The server encodes it as it wants to see it again.
        client.prefix = prefix.filter(|prefix| !prefix.is_empty()).map_or(String::new(), |p| format!("{p}/"));
        let mut headers = headers_of(&config.defaults);
        headers.extend(options.headers.clone());
        headers.extend(headers_of(&config.overrides));
        client.headers = client::headers(&headers)?;
        let mut everywhere = vended::taken(&config.defaults);
        everywhere.extend(vended::taken(&config.overrides));
        let separator = "namespace-separator";
        let separator = of(&config.overrides, separator).or_else(|| of(&config.defaults, separator));
        let endpoint = "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}/credentials";
        Ok(Self {
            client,
            separator: separator.unwrap_or_else(|| SEPARATOR.to_owned()),
            store_options: options.store.clone(),
            everywhere,
            delegate: !vended::has_credentials(&options.store),
            has_credentials_endpoint: config.endpoints.is_some_and(|all| all.iter().any(|e| e == endpoint)),
        })
    }

    pub(super) fn namespace_path(&self, levels: &[String]) -> String {
        levels.iter().map(|level| encode(level)).collect::<Vec<_>>().join(&self.separator)
    }

    pub(super) fn table_path(&self, namespace: &[String], name: &str) -> String {
        format!("namespaces/{}/tables/{}", self.namespace_path(namespace), encode(name))
    }

    pub(super) fn load_call(&self, table: &str) -> Call {
        self.delegated(Call::get("load a table", table).query("snapshots", "all"))
    }

    pub(super) fn delegated(&self, call: Call) -> Call {
        if self.delegate { call.header(DELEGATION, "vended-credentials") } else { call }
    }

    /// Namespaces under `parent`, or the outermost ones.
    async fn namespaces(&self, parent: Option<&[String]>) -> Result<Vec<Vec<String>>> {
        let mut found = Vec::new();
        let mut page = None;
        loop {
            let mut call = Call::get("list namespaces", "namespaces");
            if let Some(parent) = parent {
                call = call.query("parent", self.namespace_path(parent));
            }
            if let Some(page) = page.take() {
                call = call.query("pageToken", page);
            }
            let Some(answer) = self.client.read::<wire::Namespaces>(&call).await? else { return Ok(found) };
            found.extend(answer.namespaces);
            page = next_page(answer.next_page_token);
            if page.is_none() {
                return Ok(found);
            }
        }
    }

    /// Namespaces that are in no other: proves that the server answers to us.
    pub(super) async fn outermost(&self) -> Result<Vec<Vec<String>>> {
        self.namespaces(None).await
    }

    /// All namespaces at every level.
    pub(super) async fn all_namespaces(&self) -> Result<BTreeSet<Vec<String>>> {
        let mut all = BTreeSet::new();
        let mut fresh = self.outermost().await?;
        while !fresh.is_empty() {
            // Some servers answer with levels that were listed before.
            fresh.retain(|namespace| !namespace.is_empty() && all.insert(namespace.clone()));
            let below = stream::iter(std::mem::take(&mut fresh))
                .map(|parent| async move { self.below(&parent).await })
                .buffered(LISTINGS)
                .try_collect::<Vec<_>>()
                .await?;
            fresh = below.into_iter().flatten().collect();
        }
        Ok(all)
    }

    /// Namespaces in a namespace. A server without levels may say that it cannot be asked for them.
    async fn below(&self, parent: &[String]) -> Result<Vec<Vec<String>>> {
        match self.namespaces(Some(parent)).await {
            Err(error) if matches!(error.kind(), ErrorKind::Config | ErrorKind::Unsupported) => {
                Ok(Vec::new())
            }
            outcome => outcome,
        }
    }

    pub(super) async fn tables_in(&self, namespace: Vec<String>) -> Result<Vec<TableId>> {
        let path = format!("namespaces/{}/tables", self.namespace_path(&namespace));
        let schema = namespace.join(".");
        let mut found = Vec::new();
        let mut page = None;
        loop {
            let mut call = Call::get("list tables", path.as_str());
            if let Some(page) = page.take() {
                call = call.query("pageToken", page);
            }
            // The namespace may have gone since it was listed.
            let Some(answer) = self.client.read::<wire::Tables>(&call).await? else { return Ok(found) };
            let tables = answer.identifiers.into_iter();
            found.extend(tables.map(|table| TableId::new(schema.clone(), table.name)));
            page = next_page(answer.next_page_token);
            if page.is_none() {
                return Ok(found);
            }
        }
    }

    /// Makes a namespace and those around it, as far as they are not there.
    pub(super) async fn create_namespace(&self, levels: &[String]) -> Result<()> {
        for depth in 1..=levels.len() {
            let body = wire::CreateNamespace { namespace: &levels[..depth], properties: BTreeMap::new() };
            let call = Call::post("create a namespace", "namespaces", &body)?;
            let mut tries = self.client.tries();
            loop {
                let (error, retry_after) = match self.client.once(&call).await? {
                    Outcome::Done(_) => break,
                    Outcome::Refused { status, .. } if status.as_u16() == 409 => break,
                    Outcome::Refused { status, said, retry_after } => {
                        let error = errors::refused("create a namespace", status, &said);
                        if !client::may_pass(status) {
                            return Err(error.with("namespace", levels[..depth].join(".")));
                        }
                        (error, retry_after)
                    }
                    Outcome::Lost(error) | Outcome::Unsent(error) => (error, None),
                };
                tries.pause(error, retry_after).await?;
            }
        }
        Ok(())
    }
}

fn next_page(token: Option<String>) -> Option<String> {
    token.filter(|token| !token.is_empty()).map(|token| encode(&token))
}

fn headers_of(config: &BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    let headers =
        config.iter().filter_map(|(name, value)| Some((name.strip_prefix("header.")?, value.clone()?)));
    headers.map(|(name, value)| (name.to_owned(), value)).collect()
}
