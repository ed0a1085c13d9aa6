//! Foreign errors of the lake, made ours: `object_store`'s and iceberg's.

use std::error::Error as StdError;
use std::io;

use object_store::client::HttpError;

use crate::error::{Error, ErrorKind};

/// What helps a table that lost a file. Its other snapshots may not need it.
pub(in crate::lake) const RESTORE: &str = "restore it from a backup or an older version of the bucket; else query or roll back to a snapshot that does not need it";

/// How stores answer a request for bytes beyond a file's end.
const CUT: [&str; 3] = ["object was only", "Out of range of file", "416 Range Not Satisfiable"];

/// What a user can do about a store that said no. `action` is a verb phrase: "read a file".
pub(in crate::lake) fn store_error(action: &str, file: &str, source: object_store::Error) -> Error {
    use object_store::Error as E;
    let (kind, message, hint) = match &source {
        // A missing bucket is not found by a request for an object, and a failure of a listing.
        _ if ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]
            .iter()
            .any(|w| says(&source, w)) =>
        {
            (ErrorKind::Config, "the bucket does not exist", Some("create it, or correct the warehouse"))
        }
        E::NotFound { .. } => (ErrorKind::Corrupt, "a file is missing", Some(RESTORE)),
        // Files never change: one that ends before what is known to be in it was cut.
        _ if CUT.iter().any(|w| says(&source, w)) => {
            (ErrorKind::Corrupt, "a file is shorter than it was", Some(RESTORE))
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => (
            ErrorKind::Permission,
            "the store refused access",
            Some(
                "check the credentials, and their right to read, write, list and delete under the warehouse",
            ),
        ),
        E::AlreadyExists { .. } | E::Precondition { .. } => {
            (ErrorKind::Conflict, "the file exists already", None)
        }
        E::NotSupported { .. } | E::NotImplemented { .. } => {
            (ErrorKind::Unsupported, "the store cannot do that", None)
        }
        E::InvalidPath { .. } => (ErrorKind::Config, "not a valid path", None),
        _ => from_cause(&source),
    };
    let mut error = Error::new(kind, format!("cannot {action}: {message}")).with("file", file);
    if let Some(hint) = hint {
        error = error.hint(hint);
    }
    error.because(source)
}

/// A failed local file operation.
pub(in crate::lake) fn file_error(action: &str, file: &str, source: io::Error) -> Error {
    store_error(action, file, object_store::Error::Generic { store: "local", source: Box::new(source) })
}

fn from_cause(error: &(dyn StdError + 'static)) -> (ErrorKind, &'static str, Option<&'static str>) {
    for cause in causes(error) {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    return (
                        ErrorKind::Transient,
                        "the disk is full",
                        Some("free space and run again; nothing was committed"),
                    );
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    return (
                        ErrorKind::Permission,
                        "the file system refused access",
                        Some("check the rights on the warehouse's directory"),
                    );
                }
                io::ErrorKind::NotADirectory
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::InvalidFilename => {
                    return (
                        ErrorKind::Config,
                        "the path cannot be used",
                        Some("the warehouse must be a directory, and names must fit the file system"),
                    );
                }
                _ => {}
            }
        }
        if cause.is::<HttpError>() {
            return (
                ErrorKind::Transient,
                "the store cannot be reached",
                Some("check the network and the endpoint among the lake's options, and run again"),
            );
        }
    }
    if says(error, "configured region") || says(error, "400 Bad Request") || says(error, "301 Moved") {
        return (
            ErrorKind::Config,
            "the store did not accept the request",
            Some("check `s3.region`, `s3.endpoint` and `s3.path-style-access`"),
        );
    }
    (ErrorKind::Transient, "the store failed", Some("run again; what was committed stays"))
}

/// iceberg's errors; an error of ours that went through iceberg comes out as it went in.
pub(in crate::lake) fn iceberg_error(source: iceberg::Error) -> Error {
    let ours = causes(&source).find_map(|cause| cause.downcast_ref::<Error>()).map(copy);
    if let Some(copy) = ours {
        return copy.because(source);
    }
    use iceberg::ErrorKind as K;
    let (kind, message) = match source.kind() {
        K::CatalogCommitConflicts | K::PreconditionFailed => {
            (ErrorKind::Conflict, "the table was changed by someone else")
        }
        K::TableAlreadyExists => (ErrorKind::Conflict, "the table exists already"),
        K::FeatureUnsupported => {
            (ErrorKind::Unsupported, "a feature of Iceberg that this build does not have")
        }
        K::DataInvalid => (ErrorKind::Corrupt, "the table's metadata is not valid"),
        _ => (ErrorKind::Internal, "iceberg failed"),
    };
    let error = Error::new(kind, format!("{message}: {}", source.message()));
    let error = if kind == ErrorKind::Corrupt { error.hint(RESTORE) } else { error };
    error.because(source)
}

/// An error without what caused it.
fn copy(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message());
    for (key, value) in error.context() {
        copy = copy.with(key, value);
    }
    match error.hint_text() {
        Some(hint) => copy.hint(hint),
        None => copy,
    }
}

type Cause<'a> = &'a (dyn StdError + 'static);

/// An error and what caused it, the innermost last.
fn causes(error: Cause<'_>) -> impl Iterator<Item = Cause<'_>> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The client's retry error is private to `object_store`: only its text shows the status.
fn says(error: &(dyn StdError + 'static), words: &str) -> bool {
    causes(error).any(|cause| cause.to_string().contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do() {
        let error = file_error("write a file", "/x", io::ErrorKind::StorageFull.into());
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert_eq!(error.hint_text(), Some("free space and run again; nothing was committed"));
    }

    #[test]
    fn our_errors_pass_through_iceberg_unchanged() {
        let ours = Error::new(ErrorKind::Permission, "no").with("file", "x").hint("ask");
        let foreign = iceberg::Error::new(iceberg::ErrorKind::Unexpected, "read").with_source(ours);
        let back = iceberg_error(foreign);
        assert_eq!((back.kind(), back.to_string()), (ErrorKind::Permission, "no (file: x)".to_owned()));
        assert_eq!(back.hint_text(), Some("ask"));
    }
}
