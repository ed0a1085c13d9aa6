//! Iceberg's storage and DataFusion's stores on one `object_store`.
//!
//! ```text
//! catalog (list, conditional put) ─┐
//! iceberg FileIO (manifests) ──────┼──▶ Stores ──▶ one store for each bucket, one for local files
//! writers, DataFusion (Parquet) ───┘
//! ```
//!
//! A location in metadata is taken as it is written: nothing in it is percent-decoded, because the
//! readers of this world do not agree on decoding. We write only characters on which they agree.

mod azure;
mod errors;
mod file_io;
mod gcs;
mod local;
mod options;
mod s3;
mod vended;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use url::Url;

use self::options::Options;
use crate::error::{Error, ErrorKind, Result};

pub(super) use errors::{RESTORE, file_error, iceberg_error, store_error};
pub(super) use file_io::file_io;
pub(super) use vended::{Vended, Vendor};

/// A throttled or restarting store gets this long to come back before a pass fails; the next pass
/// goes on from the last commit.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// First pause between tries; it doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between tries.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Tries of one request: at these pauses about [`RETRY_FOR`].
const RETRIES: usize = 15;
/// A request that moves nothing for this long is given up and tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The object stores that this process has open.
#[derive(Debug, Default)]
pub struct Stores {
    options: Options,
    by_base: RwLock<HashMap<String, Arc<dyn ObjectStore>>>,
    /// Those in which prefixes have credentials of their own.
    routed: RwLock<HashMap<String, Arc<vended::Routes>>>,
}

impl Stores {
    /// Stores that are opened when first needed, with these options: see
    /// [`LakeSettings::options`](super::LakeSettings::options).
    pub fn new(options: BTreeMap<String, String>) -> Self {
        Self { options: Options(options), ..Self::default() }
    }

    /// What they are opened with.
    pub(super) fn options(&self) -> &BTreeMap<String, String> {
        &self.options.0
    }

    /// The store that holds a location, and the path there.
    pub fn resolve(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let place = Place::parse(location)?;
        let path = Path::parse(place.path).map_err(|source| {
            Error::new(ErrorKind::Config, "not a valid path").with("file", location).because(source)
        })?;
        let base = place.base();
        if let Some(store) = self.by_base.read().unwrap_or_else(PoisonError::into_inner).get(&base) {
            return Ok((store.clone(), path));
        }
        let store = self.open(&place)?;
        let mut stores = self.by_base.write().unwrap_or_else(PoisonError::into_inner);
        Ok((stores.entry(base).or_insert(store).clone(), path))
    }

    fn open(&self, place: &Place<'_>) -> Result<Arc<dyn ObjectStore>> {
        self.options.check()?;
        Ok(match place.scheme {
            "file" => Arc::new(local::Durable::new()),
            "s3" | "s3a" | "s3n" => Arc::new(s3::open(place, &self.options)?),
            "abfs" | "abfss" | "wasb" | "wasbs" | "az" => Arc::new(azure::open(place, &self.options)?),
            "gs" | "gcs" => Arc::new(gcs::open(place, &self.options)?),
            other => {
                return Err(Error::new(ErrorKind::Config, format!("`{other}://` is not a store")).hint(
                    "use a directory, `file:///…`, `s3://bucket/prefix`, `gs://bucket/prefix` or \
                     `abfss://container@account.dfs.core.windows.net/prefix`",
                ));
            }
        })
    }
}

/// How often and how long a request is tried.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: RETRY_PAUSE,
            max_backoff: RETRY_PAUSE_MAX,
            ..BackoffConfig::default()
        },
        max_retries: RETRIES,
        retry_timeout: RETRY_FOR,
    }
}

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        let base = format!("{}://{}", url.scheme(), url.authority());
        self.by_base.write().unwrap_or_else(PoisonError::into_inner).insert(base, store)
    }

    fn get_store(&self, url: &Url) -> datafusion::error::Result<Arc<dyn ObjectStore>> {
        let base = format!("{}://{}/", url.scheme(), url.authority());
        Ok(self.resolve(&base)?.0)
    }
}

/// A location taken apart, not decoded.
struct Place<'a> {
    scheme: &'a str,
    authority: &'a str,
    path: &'a str,
}

impl<'a> Place<'a> {
    fn parse(location: &'a str) -> Result<Self> {
        if let Some(path) = location.strip_prefix('/') {
            return Ok(Self { scheme: "file", authority: "", path });
        }
        if let Some((scheme, rest)) = location.split_once("://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            return Ok(Self { scheme, authority, path });
        }
        // `file:/a/b`, as Hadoop writes it.
        if let Some(path) = location.strip_prefix("file:/") {
            return Ok(Self { scheme: "file", authority: "", path });
        }
        Err(Error::new(ErrorKind::Config, "not a full location").with("file", location))
    }

    fn base(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

/// A warehouse as a user writes it, made a full location without a slash at the end.
pub(super) fn absolute(warehouse: &str) -> Result<String> {
    let trimmed = warehouse.trim_end_matches('/');
    if trimmed.contains("://") {
        return Ok(trimmed.to_owned());
    }
    let path =
        std::path::absolute(if trimmed.is_empty() { warehouse } else { trimmed }).map_err(|source| {
            Error::new(ErrorKind::Config, "the warehouse is not a valid path")
                .with("warehouse", warehouse)
                .because(source)
        })?;
    // `absolute` keeps `..`; a location in metadata should have one spelling.
    let mut clean = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    let text = clean.to_str().ok_or_else(|| {
        Error::new(ErrorKind::Config, "the warehouse's path is not UTF-8").with("warehouse", warehouse)
    })?;
    Ok(format!("file://{}", text.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_not_decoded() {
        let stores = Stores::default();
        for (location, path) in
            [("/a b/c%20d", "a b/c%20d"), ("file:///a b/c%20d", "a b/c%20d"), ("file:/a/b", "a/b")]
        {
            assert_eq!(stores.resolve(location).unwrap().1.as_ref(), path);
        }
    }

    #[test]
    fn a_warehouse_becomes_a_full_location() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("./lake/").unwrap(), format!("file://{}/lake", here.display()));
        assert_eq!(absolute("/tmp/a/../lake").unwrap(), "file:///tmp/lake");
        assert_eq!(absolute("s3://bucket/p/").unwrap(), "s3://bucket/p");
    }

    fn kind(options: &[(&str, &str)], location: &str) -> Option<ErrorKind> {
        let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Stores::new(options).resolve(location).err().map(|error| error.kind())
    }

    #[tokio::test]
    async fn each_scheme_has_its_store() {
        let azure =
            [("adls.account-name", "acct"), ("adls.account-key", "a2V5"), ("adls.sas-token.acct", "a=b")];
        for (options, location, path) in [
            (&[][..], "s3://bucket/x", "x"),
            (&[("s3.sse.type", "kms"), ("s3.sse.key", "id")], "s3a://bucket/x", "x"),
            (&azure, "abfss://box@acct.dfs.core.windows.net/a/b", "a/b"),
            (&azure, "wasbs://box@acct.blob.core.windows.net/a/b", "a/b"),
            (&azure, "az://box/a", "a"),
            (&[("gcs.no-auth", "true"), ("gcs.oauth2.token", "t")], "gs://bucket/a", "a"),
        ] {
            let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            assert_eq!(Stores::new(options).resolve(location).unwrap().1.as_ref(), path, "{location}");
        }
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused() {
        assert_eq!(kind(&[], "ftp://host/x"), Some(ErrorKind::Config));
        assert_eq!(kind(&[("s3.acess-key-id", "k")], "s3://b/x"), Some(ErrorKind::Config), "misspelt");
        assert_eq!(kind(&[("s3.sse.type", "rot13")], "s3://b/x"), Some(ErrorKind::Config));
        assert_eq!(
            kind(&[("s3.role-arn", "arn:aws:iam::1:role/r")], "s3://b/x"),
            Some(ErrorKind::Unsupported)
        );
        assert_eq!(kind(&[("ssl.cabundle", "/no/such/file")], "s3://b/x"), Some(ErrorKind::Config));
        assert_eq!(kind(&[], "az://box/x"), Some(ErrorKind::Config), "no account");
    }
}
