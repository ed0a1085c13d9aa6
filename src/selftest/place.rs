//! Where the test happens: a folder, two databases, a lake, and the configuration that passes run on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::model::{How, PICKY, SPECS, STAMP};
use super::moves::LAG;
use super::passes::unusable;
use crate::connection::Connection;
use crate::error::Result;
use crate::lake::LakeSettings;
use crate::table::TableId;

/// The places that rows are read from and written to.
#[derive(Debug, Clone)]
pub struct Places {
    /// The source.
    pub source: Connection,
    /// The target.
    pub target: Connection,
    /// The lake.
    pub lake: LakeSettings,
}

/// Rows of a transaction in the target, of the stream that has several.
const BATCH_ROWS: u32 = 10;

/// Two workers have a folder each, as on two machines.
pub(super) const MACHINES: [&str; 2] = ["one", "two"];

impl Places {
    /// What is not given is made in the folder.
    pub fn in_folder(
        folder: &Path,
        source: Option<Connection>,
        target: Option<Connection>,
        lake: Option<LakeSettings>,
    ) -> Result<Self> {
        let file = |name: &str| Connection::parse(name, &file_url(&folder.join(format!("{name}.db"))));
        Ok(Self {
            source: source.map_or_else(|| file("source"), Ok)?,
            target: target.map_or_else(|| file("target"), Ok)?,
            lake: lake.unwrap_or_else(|| LakeSettings {
                warehouse: folder.join("lake").display().to_string(),
                catalog: "filesystem".into(),
                options: BTreeMap::new(),
            }),
        })
    }
}

/// Where the target's tables are: a server of MySQL's has one place for both, if it is source and target.
pub(super) fn target_schema(places: &Places, schema: &str) -> String {
    match places.target.scheme() {
        "mysql" | "mariadb" => format!("{schema}_target"),
        _ => schema.to_owned(),
    }
}

/// Whether the target keeps every version of this table's rows, where it can.
pub(super) fn keeps_versions(places: &Places, table: &str) -> bool {
    table == "goods" && places.target.scheme() != "sqlite"
}

/// How the changes of one of the tables that are otherwise read whole are found: each time it must show one
/// state of the source, whatever the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Whole,
    Log,
    Trigger,
}

impl Way {
    /// As a configuration has it.
    fn written(self) -> &'static str {
        match self {
            Self::Whole => "full",
            Self::Log => "log",
            Self::Trigger => "trigger",
        }
    }
}

/// The table for which that is.
const BEST_WAY: &str = "lines";

/// The stream of a table.
pub(super) fn stream_name(source: &Connection, schema: &str, table: &str) -> String {
    match source.scheme() {
        "sqlite" => table.to_owned(),
        _ => format!("{schema}.{table}"),
    }
}

/// Writes the configuration for each machine. Addresses and options may hold secrets: they are variables,
/// and what these stand for is returned and written nowhere.
pub(super) fn configure(
    folder: &Path,
    places: &Places,
    schema: &str,
    way: Way,
) -> Result<BTreeMap<String, String>> {
    let mut secrets = Secrets::default();
    let streams: Map<String, Value> = SPECS
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            let mut stream = match spec.how {
                How::Whole if spec.name != BEST_WAY => json!({ "change": "full" }),
                How::Whole => json!({ "change": way.written() }),
                How::Stamped { late: true } => json!({ "change": "timestamp", "cursor": STAMP, "lag": LAG }),
                How::Stamped { late: false } => json!({ "change": "timestamp", "cursor": STAMP }),
                How::Added => json!({ "mode": "append", "change": "id", "cursor": "id" }),
            };
            // First reads come in many portions, of a block each.
            if matches!(spec.how, How::Stamped { .. }) {
                stream["portion"] = json!("8KiB");
            }
            if keeps_versions(places, spec.name) {
                stream["mode"] = json!("scd2");
            }
            stream["lake_table"] = json!(TableId::new(schema, spec.name).to_string());
            // Targets go through states between two snapshots, and know it.
            if spec.name == "lines" {
                stream["batch_rows"] = json!(BATCH_ROWS);
            }
            if spec.name == PICKY {
                stream["on_reject"] = json!("dead_letter");
            }
            // Each other one forgets in the lake what the source drops.
            stream["dropped_columns"] = json!(if index % 2 == 0 { "keep" } else { "drop" });
            (stream_name(&places.source, schema, spec.name), stream)
        })
        .collect();
    let target = match places.target.scheme() {
        "sqlite" => "target".to_owned(),
        _ => format!("target.{}", target_schema(places, schema)),
    };
    let catalog = &places.lake.catalog;
    let mut kept = json!({ "url": secrets.keep(&catalog.url), "options": secrets.all(&catalog.options) });
    if let Some(name) = &catalog.name {
        kept["name"] = json!(plain(name));
    }
    let config = json!({
        "connections": {
            "source": secrets.keep(places.source.expose().as_str()),
            "target": secrets.keep(places.target.expose().as_str()),
        },
        "lake": {
            "warehouse": plain(&places.lake.warehouse),
            "catalog": kept,
            "options": secrets.all(&places.lake.options),
        },
        // Old snapshots go while the test runs; those of the last passes are still looked at.
        "maintenance": { "keep_snapshots": 2, "keep_snapshots_for": "30s" },
        "defaults": { "source": "source", "target": target, "schedule": "every 1s" },
        "streams": streams,
    });
    let text = serde_json::to_string_pretty(&config).expect("a configuration is JSON");
    for machine in MACHINES {
        let folder = folder.join(machine);
        std::fs::create_dir_all(&folder).map_err(|source| unusable(&folder, &source))?;
        let file = folder.join("frazil.yaml");
        std::fs::write(&file, &text).map_err(|source| unusable(&file, &source))?;
    }
    Ok(secrets.0)
}

/// Values that stand in no file.
#[derive(Default)]
struct Secrets(BTreeMap<String, String>);

impl Secrets {
    fn keep(&mut self, text: &str) -> String {
        let name = format!("SELFTEST_{}", self.0.len());
        let variable = format!("${{{name}}}");
        self.0.insert(name, text.to_owned());
        variable
    }

    fn all(&mut self, options: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        options.iter().map(|(key, value)| (key.clone(), self.keep(value))).collect()
    }
}

/// Text in which `${` means nothing else.
fn plain(text: &str) -> String {
    text.replace("${", "$${")
}

/// A file as an address: what has a meaning there is encoded.
fn file_url(path: &Path) -> String {
    let encode = |c: char| match c {
        ' ' | '%' | '?' | '#' => format!("%{:02X}", c as u32),
        c => c.to_string(),
    };
    format!("sqlite://{}", path.to_string_lossy().chars().map(encode).collect::<String>())
}

/// The folder, which must be new or empty: nothing of anybody else is removed.
pub(super) fn make_folder(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(|source| unusable(folder, &source))?;
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        let occupied = std::io::Error::other("the directory is not empty");
        return Err(unusable(folder, &occupied));
    }
    folder.canonicalize().map_err(|source| unusable(folder, &source))
}
