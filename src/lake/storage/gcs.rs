//! Google Cloud Storage.

use std::sync::Arc;

use object_store::gcp::{
    GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey as Key,
};
use object_store::{ObjectStore, StaticCredentialProvider};

use super::options::{Options, is_true};
use super::{Place, retry, store_error};
use crate::error::Result;

/// Names that mean one setting of the store each.
const PLAIN: &[(&str, Key)] = &[
    ("gcs.service.host", Key::BaseUrl),
    ("gcs.credentials-json", Key::ServiceAccountKey),
    ("gcs.credentials-file", Key::ServiceAccount),
];
/// A token that somebody else has got.
const TOKEN: &str = "gcs.oauth2.token";
/// For public buckets.
const NO_AUTH: &str = "gcs.no-auth";
/// Said by other readers and of no use here: the bucket's name says enough.
const IGNORED: &[&str] = &["gcs.project-id", "gcs.oauth2.token-expires-at"];

/// Whether it is an option of this store.
pub(super) fn knows(name: &str) -> bool {
    PLAIN.iter().any(|(known, _)| *known == name)
        || [TOKEN, NO_AUTH].contains(&name)
        || IGNORED.contains(&name)
}

/// The environment (`GOOGLE_…`) first, then the options over it.
pub(super) fn open(place: &Place<'_>, options: &Options) -> Result<impl ObjectStore + use<>> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(place.authority)
        .with_client_options(options.http()?)
        .with_retry(retry());
    for (name, key) in PLAIN {
        if let Some(value) = options.get(name) {
            builder = builder.with_config(*key, value.trim_end_matches('/'));
        }
    }
    if let Some(token) = options.get(TOKEN) {
        let credential = GcpCredential { bearer: token.to_owned() };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
    }
    if options.get(NO_AUTH).is_some_and(is_true) {
        builder = builder.with_skip_signature(true);
    }
    let store: GoogleCloudStorage =
        builder.build().map_err(|source| store_error("open the store", place.authority, source))?;
    Ok(store)
}
