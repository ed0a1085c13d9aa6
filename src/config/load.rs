//! Finds and reads the file, fills in variables, and puts flags above it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use url::Url;

use super::connections::ConnectionEntry;
use super::file::File;
use super::tree::Node;
use super::vars::Lookup;
use super::{Config, Overrides, decode, is_url, lake, shown};
use crate::connection::{Connection, Limits};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeSettings;

/// The names that are looked for in the working directory.
const NAMES: [&str; 2] = ["frazil.yaml", "frazil.yml"];

/// The process's environment.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Config {
    /// Reads the file that flags name, else `./frazil.yaml`, and puts the flags above it. With
    /// `from`, a file is only read if one is named.
    pub fn load(overrides: &Overrides, environment: Lookup<'_>) -> Result<Self> {
        let path = match (Self::find(overrides), &overrides.from) {
            (None, None) => return Err(no_file()),
            (path, _) => path,
        };
        let text = path.as_deref().map(read).transpose()?.unwrap_or_default();
        let dotenv = read_dotenv(&folder(path.as_deref()))?;
        let lookup = |name: &str| environment(name).or_else(|| dotenv.get(name).cloned());
        Self::parse(path, &text, overrides, &lookup)
    }

    /// The file that flags name, else the one in the working directory, unless `from` does without.
    pub fn find(overrides: &Overrides) -> Option<PathBuf> {
        match (&overrides.config, &overrides.from) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(_)) => None,
            (None, None) => NAMES.iter().map(PathBuf::from).find(|path| path.exists()),
        }
    }

    /// The lake that flags name, for commands that need nothing else.
    pub fn lake_alone(overrides: &Overrides) -> Result<LakeSettings> {
        lake::settings(&File::default(), overrides, Path::new(""))
    }

    /// The part of loading that touches nothing outside.
    pub(crate) fn parse(
        path: Option<PathBuf>,
        text: &str,
        overrides: &Overrides,
        lookup: Lookup<'_>,
    ) -> Result<Self> {
        let name = path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        let mut tree = Node::parse(text, &name)?;
        tree.fill(lookup, &name)?;
        let file: File = decode::decode(&tree, &name)?;

        let mut connections = BTreeMap::new();
        for (connection, entry) in &file.connections {
            let place = || tree.locate(&["connections", connection]).in_file(&name);
            let parsed = parse_connection(connection, entry)
                .and_then(|parsed| within(parsed, entry.limits.limits()))
                .map_err(|error| error.with("file", place()))?;
            connections.insert(connection.clone(), parsed);
        }
        let mut config = Self {
            lake: lake::settings(&file, overrides, &folder(path.as_deref()))?,
            maintenance: file.maintenance.policy(),
            connections,
            defaults: file.defaults,
            streams: file.streams.0,
            groups: file.groups,
            shared: file.shared,
            above: overrides.stream.clone(),
            path,
            tree,
        };
        config.apply_from(overrides)?;
        config.apply_to(overrides)?;
        Ok(config)
    }

    /// A run without a file: the flags' tables are the streams.
    fn apply_from(&mut self, overrides: &Overrides) -> Result<()> {
        let Some(from) = &overrides.from else {
            if overrides.tables.is_empty() {
                return Ok(());
            }
            return Err(Error::new(ErrorKind::Config, "`--table` needs `--from`").hint(
                "name the source with `--from URL`, or pick streams of the configuration with `--select`",
            ));
        };
        if overrides.tables.is_empty() {
            return Err(Error::new(ErrorKind::Config, "`--from` needs at least one `--table`")
                .hint("`--table public.orders`, or `--table 'public.*'` for all of a schema"));
        }
        let name = self.adopt("source", from)?;
        let entry = || super::StreamEntry { source: Some(name.clone()), ..Default::default() };
        self.groups.clear();
        self.shared.clear();
        self.streams = overrides.tables.iter().map(|table| (table.clone(), entry())).collect();
        Ok(())
    }

    /// `--to` and `--target-table` become the target of every stream.
    fn apply_to(&mut self, overrides: &Overrides) -> Result<()> {
        if let Some(to) = &overrides.to {
            self.above.target = Some(if is_url(to) { self.adopt("target", to)? } else { to.clone() });
        }
        let Some(table) = &overrides.target_table else { return Ok(()) };
        if self.streams.len() > 1 && !table.contains('{') {
            return Err(Error::new(
                ErrorKind::Config,
                "`--target-table` names one table for several streams",
            )
            .hint("use `{stream_schema}` and `{stream_table}` in it, or run one stream"));
        }
        let (Some(target), true) = (&self.above.target, overrides.to.is_some()) else {
            return Err(Error::new(ErrorKind::Config, "`--target-table` needs `--to`"));
        };
        let connection = target.split('.').next().unwrap_or_default();
        self.above.target = Some(match table.contains('.') {
            true => format!("{connection}.{table}"),
            // Only a table: the target's default schema.
            false => format!("{connection}..{table}"),
        });
        Ok(())
    }

    /// Makes a connection of a URL under a name that is still free; a name stays as it is.
    fn adopt(&mut self, name: &str, name_or_url: &str) -> Result<String> {
        if !is_url(name_or_url) {
            return Ok(self.named(name_or_url)?.name().to_owned());
        }
        let mut free = name.to_owned();
        while self.connections.contains_key(&free) {
            free.push('_');
        }
        self.connections.insert(free.clone(), Connection::parse(free.clone(), name_or_url)?);
        Ok(free)
    }
}

fn no_file() -> Error {
    Error::new(ErrorKind::Config, "there is no configuration here: neither `frazil.yaml` nor `frazil.yml`")
        .hint("write one with `frazil init URL`, name one with `--config`, or run without: `frazil run --from URL --table public.orders --lake ./lake`")
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| {
        Error::new(ErrorKind::Config, format!("cannot read the configuration: {source}"))
            .with("file", path.display())
    })
}

/// The folder of the configuration; relative paths in it start here.
fn folder(path: Option<&Path>) -> PathBuf {
    path.and_then(Path::parent).map(Path::to_owned).unwrap_or_default()
}

/// `.env` next to the configuration. Its lines are never repeated in messages.
fn read_dotenv(folder: &Path) -> Result<BTreeMap<String, String>> {
    let path = folder.join(".env");
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let problem = |error: dotenvy::Error| {
        let what = match error {
            dotenvy::Error::Io(source) => source.to_string(),
            _ => "a line is not `NAME=value`".to_owned(),
        };
        Error::new(ErrorKind::Config, format!("cannot read the variables: {what}"))
            .with("file", path.display())
            .hint("quote values that hold spaces, `#`, `$` or quotes: NAME='value'")
    };
    dotenvy::from_path_iter(&path).map_err(problem)?.map(|line| line.map_err(problem)).collect()
}

fn parse_connection(name: &str, entry: &ConnectionEntry) -> Result<Connection> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(fits) {
        return Err(Error::new(ErrorKind::Config, format!("{} cannot name a connection", shown(name))).hint(
            "use letters, digits, `_` and `-`; the address goes behind the colon: `shop: postgres://…`",
        ));
    }
    if entry.password.is_none() && entry.options.is_empty() {
        return Connection::parse(name, &entry.url.0);
    }
    let mut url = Connection::parse(name, &entry.url.0)?.expose().clone();
    if let Some(password) = &entry.password {
        url.set_password(Some(&password.0)).map_err(|()| {
            Error::new(ErrorKind::Config, "this address has no place for a password").with("connection", name)
        })?;
    }
    add_options(&mut url, &entry.options);
    Connection::parse(name, url.as_str())
}

/// A limit that cannot be kept is refused rather than forgotten.
fn within(connection: Connection, limits: Limits) -> Result<Connection> {
    let measured = matches!(connection.scheme(), "postgres" | "postgresql");
    let wanted = [
        ("replica_lag", limits.replica_lag.is_some()),
        ("waiting_sessions", limits.waiting_sessions.is_some()),
    ];
    match wanted.into_iter().find(|(_, wanted)| *wanted && !measured) {
        Some((name, _)) => {
            Err(Error::new(ErrorKind::Config, format!("`{name}` is measured on Postgres alone"))
                .with("connection", connection.name())
                .hint("limit `rows_per_second`, `bytes_per_second` or `connections`"))
        }
        None => Ok(connection.within(limits)),
    }
}

fn add_options(url: &mut Url, options: &BTreeMap<String, String>) {
    if !options.is_empty() {
        url.query_pairs_mut().extend_pairs(options);
    }
}

/// A relative directory in the file means one beside the file, wherever the command runs.
pub(super) fn beside(folder: &Path, place: &str) -> String {
    if place.contains("://") || folder.as_os_str().is_empty() || Path::new(place).is_absolute() {
        return place.to_owned();
    }
    folder.join(place).display().to_string()
}
