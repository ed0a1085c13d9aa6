//! Finds and opens a SQLite file, and turns its errors into ours.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection as Database, ErrorCode, OpenFlags};
use tokio::sync::oneshot;

use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for a lock that another process holds: writers of a well-kept database are
/// done in far less, and a pass that gives up is simply repeated.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Runs something that blocks, on a thread of its own: whoever waits for a lock must not keep others
/// from the few threads that there are for files.
pub(crate) fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    let (sender, outcome) = oneshot::channel();
    let started = std::thread::Builder::new().name("sqlite".into()).spawn(move || {
        // Who waits no longer needs no answer.
        let _ = sender.send(work());
    });
    async move {
        started
            .map_err(|source| Error::new(ErrorKind::Transient, "no thread to work with").because(source))?;
        outcome
            .await
            .map_err(|source| Error::new(ErrorKind::Internal, "a sqlite thread died").because(source))?
    }
}

/// Where a database file is, and what it is called in messages.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    connection: String,
}

impl File {
    /// `sqlite:///absolute/path`, `sqlite://relative/path`, `sqlite:relative/path`.
    pub(crate) fn of(connection: &Connection) -> Result<Self> {
        let url = connection.expose();
        let wrong = |message: &str| {
            Error::new(ErrorKind::Config, message).with("connection", connection.name()).hint(
                "write `sqlite:///absolute/path.db`, or `sqlite:relative/path.db` from the working directory",
            )
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("a sqlite address takes no options"));
        }
        let text = format!("{}{}", url.host_str().unwrap_or_default(), url.path());
        let path =
            percent_decoded(&text).ok_or_else(|| wrong("the path is not valid percent-encoded text"))?;
        if path.is_empty() || path.ends_with('/') {
            return Err(wrong("a sqlite address needs the path of a file"));
        }
        Ok(Self { path: path.into(), connection: connection.name().to_owned() })
    }

    /// Opens what is there. Nothing is created; a file that may only be read is opened so.
    pub(crate) fn open(&self) -> Result<Database> {
        if !self.path.exists() {
            return Err(self
                .locate(Error::new(ErrorKind::Config, "no such file"))
                .hint("a source must exist; relative paths start at the working directory"));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Database::open_with_flags(&self.path, flags)
            .or_else(|_| Database::open_with_flags(&self.path, read_only))
            .and_then(check)
            .map_err(|error| self.error(error))
    }

    /// Opens the file, or makes it: in WAL mode, so that loading never blocks who reads.
    pub(crate) fn open_or_create(&self) -> Result<Database> {
        if self.path.exists() {
            return self.open();
        }
        if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty())
            && !parent.is_dir()
        {
            return Err(self
                .locate(Error::new(ErrorKind::Config, "no such directory"))
                .hint("make it first"));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Database::open_with_flags(&self.path, flags)
            .and_then(check)
            .and_then(in_wal_mode)
            .map_err(|error| self.error(error))
    }

    /// Whether there is a file.
    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Makes the directory of the file.
    pub(crate) fn make_folder(&self) -> Result<()> {
        let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
            return Ok(());
        };
        std::fs::create_dir_all(folder).map_err(|source| {
            self.locate(Error::new(ErrorKind::Permission, "the file's directory cannot be made"))
                .because(source)
        })
    }

    /// Opens the file for a look, or an empty database in its place.
    pub(crate) fn open_or_imagine(&self) -> Result<Database> {
        if self.path.exists() {
            return self.open();
        }
        Database::open_in_memory().map_err(|error| self.error(error))
    }

    /// Says of an error which file it is about.
    pub(crate) fn locate(&self, error: Error) -> Error {
        error.with("file", self.path.display()).with("connection", &self.connection)
    }

    /// The one place where SQLite's errors become ours.
    pub(crate) fn error(&self, error: rusqlite::Error) -> Error {
        self.locate(translate(error))
    }
}

fn check(database: Database) -> rusqlite::Result<Database> {
    database.busy_timeout(PATIENCE)?;
    // The first read finds out whether the file is a database at all.
    database.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(database)
}

/// Of two who make a file, one may be told at once that it is locked: for this SQLite does not wait by itself.
fn in_wal_mode(database: Database) -> rusqlite::Result<Database> {
    let began = Instant::now();
    loop {
        match database.pragma_update(None, "journal_mode", "wal") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && began.elapsed() < PATIENCE =>
            {
                std::thread::sleep(LOOK_AGAIN);
            }
            outcome => return outcome.map(|()| database),
        }
    }
}

fn translate(error: rusqlite::Error) -> Error {
    // A statement that SQLite does not understand has a name or a condition of the user's in it.
    if let rusqlite::Error::SqlInputError { msg, .. } = &error {
        return Error::new(ErrorKind::Config, format!("sqlite: {msg}"))
            .hint("check the names and conditions in the configuration")
            .because(error);
    }
    let Some(code) = error.sqlite_error().copied() else {
        return Error::new(ErrorKind::Internal, "sqlite was used in a wrong way").because(error);
    };
    // SQLite's messages name tables and columns, never values.
    let message = match &error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    };
    let (kind, hint) = match code.code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            (ErrorKind::Transient, "another process holds the database; run again when it is done")
        }
        ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::AuthorizationForStatementDenied => {
            (ErrorKind::Permission, "give this user the right to the file and its directory")
        }
        ErrorCode::CannotOpen => {
            (ErrorKind::Permission, "check that this user may open the file and write in its directory")
        }
        ErrorCode::NotADatabase => (ErrorKind::Config, "the file is something else, or it is encrypted"),
        ErrorCode::DatabaseCorrupt => {
            (ErrorKind::Corrupt, "run `PRAGMA integrity_check` on it, and restore it from a backup")
        }
        ErrorCode::DiskFull => (ErrorKind::Transient, "free some space and run again; nothing was changed"),
        ErrorCode::SystemIoFailure | ErrorCode::OperationInterrupted | ErrorCode::SchemaChanged => {
            (ErrorKind::Transient, "run again")
        }
        ErrorCode::ConstraintViolation => {
            (ErrorKind::Data, "a constraint of the table forbids a row; drop it, or load into another table")
        }
        ErrorCode::TooBig => (ErrorKind::Data, "SQLite keeps no value beyond a gigabyte"),
        ErrorCode::Unknown => (ErrorKind::Config, "check the names and conditions in the configuration"),
        _ => (ErrorKind::Internal, "please report this"),
    };
    Error::new(kind, format!("sqlite: {message}")).hint(hint).because(error)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(url: &str) -> Result<String> {
        File::of(&Connection::parse("test", url)?).map(|file| file.path.display().to_string())
    }

    #[test]
    fn addresses() {
        assert_eq!(path("sqlite:///var/shop.db").unwrap(), "/var/shop.db");
        assert_eq!(path("sqlite:shop.db").unwrap(), "shop.db");
        assert_eq!(path("sqlite:data/shop.db").unwrap(), "data/shop.db");
        assert_eq!(path("sqlite://./shop.db").unwrap(), "./shop.db");
        assert_eq!(path("sqlite://data/Shop.db").unwrap(), "data/Shop.db");
        assert_eq!(path("sqlite:///my%20shop.db").unwrap(), "/my shop.db");
        for wrong in ["sqlite:", "sqlite://", "sqlite:///dir/", "sqlite:///a.db?mode=ro"] {
            assert_eq!(path(wrong).unwrap_err().kind(), ErrorKind::Config, "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let url = format!("sqlite://{}", dir.path().join(name).display());
            File::of(&Connection::parse("shop", &url).unwrap()).unwrap()
        };
        let missing = at("missing.db").open().unwrap_err();
        assert_eq!((missing.kind(), missing.message()), (ErrorKind::Config, "no such file"));
        assert!(!dir.path().join("missing.db").exists());

        std::fs::write(dir.path().join("notes.txt"), "these are notes, and not a database, by a long way")
            .unwrap();
        let notes = at("notes.txt").open().unwrap_err();
        assert_eq!((notes.kind(), notes.message()), (ErrorKind::Config, "sqlite: file is not a database"));
    }
}
