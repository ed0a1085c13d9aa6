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

mod errors;
mod file_io;
mod local;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::error::{Error, ErrorKind, Result};

pub(super) use errors::{file_error, iceberg_error, store_error};
pub(super) use file_io::file_io;

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
    options: BTreeMap<String, String>,
    by_base: RwLock<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl Stores {
    /// Stores that are opened when first needed, with these options: see
    /// [`LakeSettings::options`](super::LakeSettings::options).
    pub fn new(options: BTreeMap<String, String>) -> Self {
        Self { options, by_base: RwLock::default() }
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
        match place.scheme {
            "file" => Ok(Arc::new(local::Durable::new())),
            "s3" | "s3a" => self.open_s3(place.authority),
            "gs" | "gcs" | "az" | "azure" | "abfs" | "abfss" | "wasb" | "wasbs" => Err(Error::new(
                ErrorKind::Unsupported,
                format!("this build has no store for `{}://`", place.scheme),
            )
            .hint("use a local directory or an S3-compatible store")),
            other => Err(Error::new(ErrorKind::Config, format!("`{other}://` is not a store"))
                .hint("use a directory, `file:///…` or `s3://bucket/prefix`")),
        }
    }

    /// The environment (`AWS_…`) first, then the options over it.
    fn open_s3(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
        use AmazonS3ConfigKey as Key;
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_client_options(ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_allow_http(true))
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: RETRY_PAUSE,
                    max_backoff: RETRY_PAUSE_MAX,
                    ..BackoffConfig::default()
                },
                max_retries: RETRIES,
                retry_timeout: RETRY_FOR,
            });
        for (name, value) in &self.options {
            builder = match name.as_str() {
                "s3.access-key-id" => builder.with_config(Key::AccessKeyId, value),
                "s3.secret-access-key" => builder.with_config(Key::SecretAccessKey, value),
                "s3.session-token" => builder.with_config(Key::Token, value),
                "s3.region" | "client.region" => builder.with_config(Key::Region, value),
                "s3.endpoint" => builder.with_config(Key::Endpoint, value),
                "s3.path-style-access" => {
                    builder.with_virtual_hosted_style_request(!value.eq_ignore_ascii_case("true"))
                }
                "s3.anonymous" => builder.with_config(Key::SkipSignature, value),
                _ => {
                    return Err(Error::new(
                        ErrorKind::Config,
                        format!("`{name}` is not an option of the store"),
                    )
                    .hint(
                        "known are s3.endpoint, s3.region, s3.access-key-id, s3.secret-access-key, \
                         s3.session-token, s3.path-style-access and s3.anonymous",
                    ));
                }
            };
        }
        let store = builder.build().map_err(|source| store_error("open the store", bucket, source))?;
        Ok(Arc::new(store))
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

    #[test]
    fn stores_that_are_not_built_say_so() {
        let stores = Stores::default();
        let error = stores.resolve("gs://bucket/x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(stores.resolve("ftp://host/x").unwrap_err().kind(), ErrorKind::Config);
    }
}
