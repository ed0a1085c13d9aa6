//! How a table's files are reached, where the catalog says so.
//!
//! What the user wrote wins, name by name, so that an address that the server has wrong can be put
//! right. Credentials are taken from one side as a whole: ours if there are any, else the catalog's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::client::Call;
use super::server::Server;
use super::wire::{self, Credential, Loaded};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::storage::{Vended, Vendor};

/// Options of a store that a catalog may give; others are about clients that we are not.
const TAKEN: [&str; 8] = [
    "s3.endpoint",
    "s3.region",
    "client.region",
    "s3.path-style-access",
    "s3.access-key-id",
    "s3.secret-access-key",
    "s3.session-token",
    "gcs.oauth2.token",
];
/// Azure's tokens carry the account in their names.
const TAKEN_BEGINNING: &str = "adls.sas-token.";
/// How names begin that say who somebody is.
const CREDENTIALS: [&str; 14] = [
    "s3.access-key-id",
    "s3.secret-access-key",
    "s3.session-token",
    "s3.anonymous",
    "gcs.oauth2.token",
    "gcs.credentials-",
    "gcs.no-auth",
    "adls.account-key",
    "adls.auth.shared-key.account.key",
    "adls.client-secret",
    "adls.connection-string",
    "adls.sas-token",
    "adls.token",
    "adls.anon",
];
/// When what is vended ends, in milliseconds since 1970; Azure's name carries the account, too.
const ENDS: [&str; 4] = [
    "s3.session-token-expires-at-ms",
    "gcs.oauth2.token-expires-at",
    "adls.sas-token-expires-at-ms.",
    "expiration-time",
];

/// Whether the user has said who reads the store: then the catalog is not asked for credentials.
pub(super) fn has_credentials(options: &BTreeMap<String, String>) -> bool {
    options.keys().any(|name| is_credential(name))
}

/// Options of stores among what a server says of all tables.
pub(super) fn taken(config: &BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    let said = config.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    said.filter(|(name, _)| is_taken(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// One set of options for each prefix that the answer to a load names.
pub(super) fn vended(
    said: &BTreeMap<String, String>,
    everywhere: &BTreeMap<String, String>,
    location: &str,
    loaded: &Loaded,
) -> Result<Vec<(String, Vended)>> {
    let mut all = vec![(location.to_owned(), merge(said, [everywhere, &loaded.config]))];
    for credential in &loaded.storage_credentials {
        let given = merge(said, [everywhere, &loaded.config, &credential.config]);
        all.push((credential.prefix.clone(), given));
    }
    let signs =
        loaded.config.get("s3.remote-signing-enabled").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let vends = all.iter().any(|(_, vended)| has_credentials(&vended.options));
    if signs && !vends {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the catalog wants to sign each request to the store itself, which this build does not do",
        )
        .hint("let the catalog vend credentials, or give credentials of the store in `lake.options`"));
    }
    // What the user's options open by themselves needs no entry.
    all.retain(|(_, vended)| vended.options != *said);
    Ok(all)
}

/// The later wins over the earlier, the user over both.
fn merge<'a>(
    said: &BTreeMap<String, String>,
    given: impl IntoIterator<Item = &'a BTreeMap<String, String>>,
) -> Vended {
    let own = has_credentials(said);
    let mut options = BTreeMap::new();
    let mut ends = None;
    for (name, value) in given.into_iter().flatten() {
        if is_taken(name) && !(own && is_credential(name)) {
            options.insert(name.clone(), value.clone());
        }
        if !own && ENDS.iter().any(|end| name.starts_with(end)) {
            ends = value.parse().ok().map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        }
    }
    // Two names of one thing: the user's must not lie beside the other's.
    if said.contains_key("s3.region") || said.contains_key("client.region") {
        options.retain(|name, _| name != "s3.region" && name != "client.region");
    }
    options.extend(said.clone());
    Vended { options, ends }
}

fn is_taken(name: &str) -> bool {
    TAKEN.contains(&name) || name.starts_with(TAKEN_BEGINNING)
}

fn is_credential(name: &str) -> bool {
    CREDENTIALS.iter().any(|beginning| name.starts_with(beginning))
}

/// Asks the catalog again for the credentials of one prefix of one table.
pub(super) struct OfTable {
    pub(super) server: Arc<Server>,
    /// The table's path in the catalog.
    pub(super) table: String,
    pub(super) prefix: String,
    /// What the catalog said of the table as a whole.
    pub(super) config: BTreeMap<String, String>,
}

#[async_trait]
impl Vendor for OfTable {
    async fn vend(&self) -> Result<Vended> {
        let (said, everywhere) = (&self.server.store_options, &self.server.everywhere);
        let gone = || Error::new(ErrorKind::Conflict, "the table was dropped, and with it its credentials");
        let named =
            |all: Vec<Credential>| all.into_iter().find(|credential| credential.prefix == self.prefix);
        if self.server.has_credentials_endpoint {
            let call = Call::get("renew a table's credentials", format!("{}/credentials", self.table));
            let got: wire::Credentials = self.server.client.read(&call).await?.ok_or_else(gone)?;
            if let Some(credential) = named(got.storage_credentials) {
                return Ok(merge(said, [everywhere, &self.config, &credential.config]));
            }
        }
        let call = self.server.load_call(&self.table);
        let loaded: Loaded = self.server.client.read(&call).await?.ok_or_else(gone)?;
        let own = named(loaded.storage_credentials).map(|credential| credential.config).unwrap_or_default();
        Ok(merge(said, [everywhere, &loaded.config, &own]))
    }
}
