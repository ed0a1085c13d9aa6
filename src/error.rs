//! One error for the whole engine: what failed, where, and what to do about it.
//!
//! [`ErrorKind`] is for code: retry, stop, exit status. The hint is for people and is rendered
//! after the error, never mixed into it. Context pairs (`table`, `column`, `file`, …) are added on
//! the way up. Secrets and row values never enter an error.

use std::fmt;
use std::sync::Arc;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Fix the configuration or the command line: an unknown key, table, column or host.
    Config,
    /// Prove who you are or be granted a right.
    Permission,
    /// Try again later: the network, a lock, a server that restarts or is throttled.
    Transient,
    /// Somebody else moved the table first. Nothing of ours was applied; the next run goes on.
    Conflict,
    /// The shape of a table changed in a way that the stream's policy does not let pass.
    Schema,
    /// A value cannot be carried exactly under the stream's policy, or rows did not pass their audit.
    Data,
    /// What was read back is not what was written: a damaged or foreign file.
    Corrupt,
    /// Written by a newer version, or a feature that this build does not have.
    Unsupported,
    /// A bug of ours: please report it.
    Internal,
}

impl ErrorKind {
    /// The name used in output and in `docs/reference/errors.md`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Permission => "permission",
            Self::Transient => "transient",
            Self::Conflict => "conflict",
            Self::Schema => "schema",
            Self::Data => "data",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }

    /// All kinds, in the order of the reference page.
    pub const ALL: [Self; 9] = [
        Self::Config,
        Self::Permission,
        Self::Transient,
        Self::Conflict,
        Self::Schema,
        Self::Data,
        Self::Corrupt,
        Self::Unsupported,
        Self::Internal,
    ];
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What failed, where, and what to do.
///
/// ```
/// use frazil::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Config, "cursor column does not exist")
///     .with("table", "public.orders")
///     .with("column", "updated")
///     .hint("did you mean `updated_at`?");
/// assert_eq!(
///     error.to_string(),
///     "cursor column does not exist (table: public.orders, column: updated)"
/// );
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<(&'static str, String)>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a lower-case message without full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), context: Vec::new(), hint: None, source: None }))
    }

    /// Says where: `("table", id)`, `("column", name)`, `("file", path)`. The first value of a key wins,
    /// because the innermost place is the most exact.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        if !self.0.context.iter().any(|(k, _)| *k == key) {
            self.0.context.push((key, value.to_string()));
        }
        self
    }

    /// Says what to do. The first hint wins.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Keeps the foreign error that caused this one, for `--verbose` and the log.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The same error without its cause.
    fn again(&self) -> Self {
        let Inner { kind, message, context, hint, source: _ } = self.0.as_ref();
        let (message, context, hint) = (message.clone(), context.clone(), hint.clone());
        Self(Box::new(Inner { kind: *kind, message, context, hint, source: None }))
    }

    /// What failed, without context and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The places, from the innermost outwards.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// What to do, if we know.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for (i, (key, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{key}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind)?;
        if let Some(source) = &self.0.source {
            write!(f, "\n  because: {source:?}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// Arrow fails on shapes that we built ourselves: a bug unless a caller knows better.
impl From<arrow::error::ArrowError> for Error {
    fn from(source: arrow::error::ArrowError) -> Self {
        Self::new(ErrorKind::Internal, "arrow refused a batch").because(source)
    }
}

/// An engine error that passed through a DataFusion stream comes out as it went in; memory that ran
/// out says so; the rest is about the query.
impl From<datafusion::error::DataFusionError> for Error {
    fn from(source: datafusion::error::DataFusionError) -> Self {
        use datafusion::error::DataFusionError as D;
        match source {
            D::External(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => match ours(inner.as_ref()) {
                    Some(ours) => ours.again().because(inner),
                    None => Self::new(ErrorKind::Internal, "query failed").because(inner),
                },
            },
            D::Context(_, inner) | D::Diagnostic(_, inner) => (*inner).into(),
            D::Collection(mut errors) if !errors.is_empty() => errors.swap_remove(0).into(),
            D::ArrowError(inner, _) => match *inner {
                arrow::error::ArrowError::ExternalError(inner) => match inner.downcast::<D>() {
                    Ok(inner) => (*inner).into(),
                    Err(inner) => D::External(inner).into(),
                },
                other @ arrow::error::ArrowError::ParquetError(_) => damaged(other),
                other => other.into(),
            },
            // One failure that several streams report.
            D::Shared(inner) => match Arc::try_unwrap(inner) {
                Ok(inner) => inner.into(),
                Err(shared) => match ours(shared.as_ref()) {
                    Some(ours) => ours.again().because(shared),
                    None => Self::new(ErrorKind::Internal, "query failed").because(shared),
                },
            },
            D::ResourcesExhausted(_) => Self::new(ErrorKind::Config, "the memory budget is too small")
                .hint("raise `--memory`, or lower the number of parallel streams")
                .because(source),
            D::SQL(..) | D::Plan(_) | D::SchemaError(..) => {
                Self::new(ErrorKind::Config, format!("query is not valid: {}", source.strip_backtrace()))
            }
            other => match ours(&other) {
                Some(ours) => ours.again().because(other),
                None if matches!(other, D::ParquetError(_)) => damaged(other),
                None => Self::new(ErrorKind::Internal, "query failed").because(other),
            },
        }
    }
}

/// What a reader cannot make sense of.
fn damaged(source: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>) -> Error {
    Error::new(ErrorKind::Corrupt, "cannot read a data file: it is damaged")
        .hint("restore it from a backup, or read a snapshot without it: `frazil snapshots` lists them")
        .because(source)
}

/// The engine error at the bottom of a DataFusion error that cannot be taken apart.
fn ours<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    loop {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return Some(ours);
        }
        error = error.source()?;
    }
}

/// Lets engine code run inside DataFusion streams.
impl From<Error> for datafusion::error::DataFusionError {
    fn from(error: Error) -> Self {
        Self::External(Box::new(error))
    }
}
