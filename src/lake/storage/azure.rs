//! Azure Blob Storage and Data Lake Storage, by their Blob endpoint.
//!
//! ```text
//! abfss://container@account.dfs.core.windows.net/path     as Spark and Hadoop write it (also wasbs://…)
//! abfss://container/path, az://container/path             the account is an option
//! ```

use object_store::ObjectStore;
use object_store::azure::{AzureConfigKey as Key, MicrosoftAzure, MicrosoftAzureBuilder};

use super::options::Options;
use super::{Place, retry, store_error};
use crate::error::{Error, ErrorKind, Result};

/// Names that mean one setting of the store each: pyiceberg's and Iceberg's Java library's.
const PLAIN: &[(&str, Key)] = &[
    ("adls.account-name", Key::AccountName),
    ("adls.auth.shared-key.account.name", Key::AccountName),
    ("adls.account-key", Key::AccessKey),
    ("adls.auth.shared-key.account.key", Key::AccessKey),
    ("adls.sas-token", Key::SasKey),
    ("adls.token", Key::Token),
    ("adls.tenant-id", Key::AuthorityId),
    ("adls.client-id", Key::ClientId),
    ("adls.client-secret", Key::ClientSecret),
    ("adls.authority-host", Key::AuthorityHost),
    ("adls.endpoint", Key::Endpoint),
    ("adls.anon", Key::SkipSignature),
];
const CONNECTION_STRING: &str = "adls.connection-string";
/// Followed by a dot and the account, or the account's host.
const BY_ACCOUNT: [(&str, Option<Key>); 2] =
    [("adls.sas-token", Some(Key::SasKey)), (CONNECTION_STRING, None)];

/// Whether it is an option of this store.
pub(super) fn knows(name: &str) -> bool {
    let by_account = |base: &str| name.strip_prefix(base).is_some_and(|rest| rest.starts_with('.'));
    name == CONNECTION_STRING
        || PLAIN.iter().any(|(known, _)| *known == name)
        || BY_ACCOUNT.iter().any(|(base, _)| by_account(base))
}

/// The environment (`AZURE_…`) first, then the options, then what the location says.
pub(super) fn open(place: &Place<'_>, options: &Options) -> Result<impl ObjectStore + use<>> {
    let (container, host) = match place.authority.split_once('@') {
        Some((container, host)) => (container, Some(host)),
        None => (place.authority, None),
    };
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_client_options(options.http()?)
        .with_retry(retry());
    for (name, key) in PLAIN {
        if let Some(value) = options.get(name) {
            builder = builder.with_config(*key, value);
        }
    }
    if let Some(text) = options.get(CONNECTION_STRING) {
        builder = connected(builder, text)?;
    }
    let account = host.map(|host| host.split('.').next().unwrap_or(host).to_owned());
    if let (Some(host), Some(account)) = (host, &account) {
        builder = builder.with_account(account);
        if host.ends_with(".fabric.microsoft.com") {
            builder = builder.with_use_fabric_endpoint(true);
        }
        if let Some(text) = of_account(options, CONNECTION_STRING, account, host) {
            builder = connected(builder, text)?;
        }
    }
    let account = account.or_else(|| builder.get_config_value(&Key::AccountName));
    let Some(account) = account else {
        return Err(Error::new(ErrorKind::Config, "the storage account is not known")
            .with("container", container)
            .hint("set `adls.account-name`, or write `abfss://container@account.dfs.core.windows.net/…`"));
    };
    let host = host.unwrap_or_default();
    for (base, key) in BY_ACCOUNT {
        if let (Some(key), Some(value)) = (key, of_account(options, base, &account, host)) {
            builder = builder.with_config(key, value);
        }
    }
    let store: MicrosoftAzure =
        builder.build().map_err(|source| store_error("open the store", container, source))?;
    Ok(store)
}

fn of_account<'a>(options: &'a Options, base: &str, account: &str, host: &str) -> Option<&'a str> {
    [account, host].iter().find_map(|name| options.get(&format!("{base}.{name}")))
}

/// `AccountName=…;AccountKey=…;BlobEndpoint=…`, as Azure's portal shows it. It is never repeated.
fn connected(mut builder: MicrosoftAzureBuilder, text: &str) -> Result<MicrosoftAzureBuilder> {
    let (mut protocol, mut suffix, mut endpoint) = ("https", None, None);
    for part in text.split(';').filter(|part| !part.trim().is_empty()) {
        let (name, value) = part.split_once('=').ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("`{CONNECTION_STRING}` is not a list of `Name=value;`"))
        })?;
        builder = match name.trim() {
            "AccountName" => builder.with_account(value),
            "AccountKey" => builder.with_access_key(value),
            "SharedAccessSignature" => builder.with_config(Key::SasKey, value),
            "BlobEndpoint" => {
                endpoint = Some(value.trim_end_matches('/').to_owned());
                builder
            }
            "DefaultEndpointsProtocol" => {
                protocol = value;
                builder
            }
            "EndpointSuffix" => {
                suffix = Some(value);
                builder
            }
            // The other services of the account.
            _ => builder,
        };
    }
    let account = builder.get_config_value(&Key::AccountName);
    if let (None, Some(suffix), Some(account)) = (&endpoint, suffix, account) {
        endpoint = Some(format!("{protocol}://{account}.blob.{suffix}"));
    }
    Ok(match endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_says_everything() {
        let text = "DefaultEndpointsProtocol=http;AccountName=dev;AccountKey=a2V5PQ==;\
                    BlobEndpoint=http://127.0.0.1:10000/dev/;QueueEndpoint=http://127.0.0.1:10001/dev;";
        let builder = connected(MicrosoftAzureBuilder::new(), text).unwrap();
        let value = |key: Key| builder.get_config_value(&key);
        assert_eq!(value(Key::AccountName).as_deref(), Some("dev"));
        assert_eq!(value(Key::AccessKey).as_deref(), Some("a2V5PQ=="));
        assert_eq!(value(Key::Endpoint).as_deref(), Some("http://127.0.0.1:10000/dev"));
        let cloud = "AccountName=a;AccountKey=a2V5PQ==;EndpointSuffix=core.chinacloudapi.cn";
        let builder = connected(MicrosoftAzureBuilder::new(), cloud).unwrap();
        let endpoint = builder.get_config_value(&Key::Endpoint);
        assert_eq!(endpoint.as_deref(), Some("https://a.blob.core.chinacloudapi.cn"));
        let error = connected(MicrosoftAzureBuilder::new(), "secret").err().unwrap();
        assert!(!format!("{error:?}").contains("secret"));
    }
}
