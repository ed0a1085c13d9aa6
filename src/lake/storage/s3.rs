//! S3 and what speaks like it.

use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Key, S3ConditionalPut};

use super::options::{Options, is_true};
use super::{Place, retry, store_error};
use crate::error::{Error, ErrorKind, Result};

/// Names that mean one setting of the store each: Iceberg's Java library first, then pyiceberg's.
const PLAIN: &[(&str, Key)] = &[
    ("s3.endpoint", Key::Endpoint),
    ("s3.region", Key::Region),
    ("client.region", Key::Region),
    ("s3.access-key-id", Key::AccessKeyId),
    ("s3.secret-access-key", Key::SecretAccessKey),
    ("s3.session-token", Key::Token),
    ("s3.anonymous", Key::SkipSignature),
    ("client.assume-role.arn", Key::RoleArn),
    ("s3.role-arn", Key::RoleArn),
    ("client.assume-role.session-name", Key::RoleSessionName),
    ("s3.role-session-name", Key::RoleSessionName),
];
/// Names that take a closer look.
const OTHERS: &[&str] = &["s3.path-style-access", "s3.force-virtual-addressing", "s3.sse.type", "s3.sse.key"];

/// Whether it is an option of this store.
pub(super) fn knows(name: &str) -> bool {
    PLAIN.iter().any(|(known, _)| *known == name) || OTHERS.contains(&name)
}

/// The environment (`AWS_…`) first, then the options over it.
pub(super) fn open(place: &Place<'_>, options: &Options) -> Result<impl ObjectStore + use<>> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(place.authority)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(options.http()?)
        .with_retry(retry());
    for (name, key) in PLAIN {
        if let Some(value) = options.get(name) {
            builder = builder.with_config(*key, value);
        }
    }
    if let Some(value) = options.get("s3.path-style-access") {
        builder = builder.with_virtual_hosted_style_request(!is_true(value));
    }
    if let Some(value) = options.get("s3.force-virtual-addressing") {
        builder = builder.with_virtual_hosted_style_request(is_true(value));
    }
    builder = encrypted(builder, options)?;
    let role = builder.get_config_value(&Key::RoleArn).is_some();
    if role && builder.get_config_value(&Key::WebIdentityTokenFile).is_none() {
        return Err(Error::new(ErrorKind::Unsupported, "a role is assumed by a web identity only")
            .hint("set AWS_WEB_IDENTITY_TOKEN_FILE, or give the keys and the session token of the role"));
    }
    let store: AmazonS3 =
        builder.build().map_err(|source| store_error("open the store", place.authority, source))?;
    Ok(store)
}

/// `s3.sse.type`: none, s3, kms, dsse-kms, custom; `s3.sse.key`: the KMS key's id, or our own key.
fn encrypted(builder: AmazonS3Builder, options: &Options) -> Result<AmazonS3Builder> {
    let key = options.get("s3.sse.key").unwrap_or_default();
    Ok(match options.get("s3.sse.type") {
        None if key.is_empty() => builder,
        Some("none") => builder,
        Some("s3") => builder.with_config(sse_type(), "AES256"),
        Some("kms") if key.is_empty() => builder.with_config(sse_type(), "aws:kms"),
        Some("kms") => builder.with_sse_kms_encryption(key),
        Some("dsse-kms") => builder.with_dsse_kms_encryption(key),
        Some("custom") => builder.with_ssec_encryption(key),
        _ => {
            return Err(Error::new(ErrorKind::Config, "`s3.sse.type` is not known")
                .hint("use none, s3, kms, dsse-kms or custom; `s3.sse.key` goes with the last three"));
        }
    })
}

fn sse_type() -> Key {
    "aws_server_side_encryption".parse().expect("a name of object_store's")
}
