//! What ran when, in a small SQLite file beside the configuration.
//!
//! For people only: no position and no decision of a run depends on it, but for `--failed`. Losing
//! it loses nothing else.

mod trends;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

pub use self::trends::Trend;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::Past;
use crate::sync::{ExtractReport, Lateness, StreamReport};

/// About a year of hourly runs of ten streams, in a few tens of megabytes.
const KEPT: u32 = 100_000;
/// Another run may be writing; it never takes long.
const PATIENCE: Duration = Duration::from_secs(5);

const TABLES: &str = "
create table if not exists passes (
    id integer primary key,
    run text not null,
    verb text not null,
    stream text not null,
    started_at text not null,
    seconds real not null,
    verdict text not null,
    change text,
    rows_extracted integer,
    file_bytes integer,
    snapshot integer,
    rows_upserted integer,
    rows_deleted integer,
    error_kind text,
    error text,
    version text not null,
    rows_rejected integer,
    read_whole integer,
    conflicts integer,
    late text,
    latency real,
    differences integer
);
create index if not exists passes_by_stream on passes (stream, id);
";

/// The run history of one configuration.
pub struct History {
    db: Connection,
}

/// Which passes are asked for.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Those of these streams; of all, if there are none.
    pub streams: Vec<String>,
    /// Those that ended so: `done`, `nothing_to_do`, `conflict`, `failed`; all, if there are none.
    pub verdicts: Vec<String>,
    /// Those that began at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// No more than so many.
    pub limit: u32,
}

/// The verb of a comparison, which is noted beside passes.
pub const COMPARE: &str = "compare";
/// The verb of a comparison of some rows.
pub const SAMPLE: &str = "sample";

/// One pass of one stream, as it went.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Pass {
    /// The run it belonged to.
    pub run: String,
    /// `run`, `sync`, `load` or `serve`; `compare`, where places were compared.
    pub verb: String,
    /// The stream.
    pub stream: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub seconds: f64,
    /// How it ended: `done`, `nothing_to_do`, `conflict`, `failed`.
    pub verdict: String,
    /// How changes were found.
    pub change: Option<String>,
    /// Rows committed to the lake.
    pub rows_extracted: Option<u64>,
    /// Bytes of their files.
    pub file_bytes: Option<u64>,
    /// The lake snapshot at its end.
    pub snapshot: Option<i64>,
    /// Rows inserted or updated in the target.
    pub rows_upserted: Option<u64>,
    /// Rows deleted in the target.
    pub rows_deleted: Option<u64>,
    /// Rows that became dead letters, on either half.
    pub rows_rejected: Option<u64>,
    /// Rows that source and target both changed.
    pub conflicts: Option<u64>,
    /// Rows from before the position that the pass found.
    pub rows_late: Option<u64>,
    /// Seconds from the commit of the oldest change in the source to where it had to go.
    pub latency_seconds: Option<f64>,
    /// Keys that a comparison found different.
    pub differences: Option<u64>,
    /// The error's kind.
    pub error_kind: Option<String>,
    /// The error.
    pub error: Option<String>,
}

impl History {
    /// The file beside a configuration; without one, in the user's state directory.
    pub fn place(config: Option<&Path>) -> PathBuf {
        if let Some(config) = config {
            return config.parent().unwrap_or(Path::new("")).join(".frazil/history.db");
        }
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
        state.or_else(home).unwrap_or_else(std::env::temp_dir).join("frazil/history.db")
    }

    /// Opens the history, or begins one.
    pub fn open(path: &Path) -> Result<Self> {
        let begin = || -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
                let ignore = folder.join(".gitignore");
                if folder.ends_with(".frazil") && !ignore.exists() {
                    std::fs::write(ignore, "*\n")?;
                }
            }
            let db = Connection::open(path)?;
            db.busy_timeout(PATIENCE)?;
            spare_the_disk(&db)?;
            db.execute_batch(TABLES)?;
            add_what_is_new(&db)?;
            Ok(db)
        };
        let db = begin().map_err(|source| {
            Error::new(ErrorKind::Config, format!("cannot open the run history: {source}"))
                .with("file", path.display())
                .hint("make the folder writable, or remove a damaged file: nothing but past runs is in it")
        })?;
        Ok(Self { db })
    }

    /// Opens the history if there is one.
    pub fn open_existing(path: &Path) -> Result<Option<Self>> {
        if path.exists() { Self::open(path).map(Some) } else { Ok(None) }
    }

    /// Whether a SQLite file can be read from end to end.
    pub fn is_sound(path: &Path) -> bool {
        let check = || -> rusqlite::Result<String> {
            let db = Connection::open(path)?;
            db.busy_timeout(PATIENCE)?;
            db.query_row("pragma quick_check(1)", [], |row| row.get(0))
        };
        check().is_ok_and(|said| said == "ok")
    }

    /// Puts a damaged file aside, with what SQLite keeps beside it.
    pub fn put_aside(path: &Path) -> Result<()> {
        let now = Utc::now().format("%Y%m%dT%H%M%S");
        for suffix in ["", "-wal", "-shm"] {
            let file = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
            match std::fs::rename(file(suffix), file(&format!(".damaged-{now}{suffix}"))) {
                Ok(()) => {}
                Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(Error::new(
                        ErrorKind::Config,
                        format!("a damaged file cannot be put aside: {source}"),
                    )
                    .with("file", path.display())
                    .hint("make the folder writable"));
                }
            }
        }
        Ok(())
    }

    /// Notes a pass that is known from elsewhere.
    pub fn remember(&self, pass: &Pass) -> Result<()> {
        self.db
            .execute(
                "insert into passes (run, verb, stream, started_at, seconds, verdict, change, rows_extracted, \
                 file_bytes, snapshot, version, differences, error_kind, error) \
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                params![
                    pass.run,
                    pass.verb,
                    pass.stream,
                    pass.started_at.to_rfc3339(),
                    pass.seconds,
                    pass.verdict,
                    pass.change,
                    pass.rows_extracted.map(u64::cast_signed),
                    pass.file_bytes.map(u64::cast_signed),
                    pass.snapshot,
                    env!("CARGO_PKG_VERSION"),
                    pass.differences.map(u64::cast_signed),
                    pass.error_kind,
                    pass.error,
                ],
            )
            .map(drop)
            .map_err(foreign)
    }

    /// Notes how a pass went.
    pub fn record(&self, verb: &str, report: &StreamReport) -> Result<()> {
        let extract = report.extract.as_ref();
        let load = report.load.as_ref();
        let error = report.error.as_ref();
        self.db
            .execute(
                "insert into passes (run, verb, stream, started_at, seconds, verdict, change, rows_extracted, \
                 file_bytes, snapshot, rows_upserted, rows_deleted, error_kind, error, version, rows_rejected, \
                 read_whole, conflicts, late, latency) \
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
                params![
                    report.run.to_string(),
                    verb,
                    report.stream,
                    report.started_at.to_rfc3339(),
                    report.seconds,
                    report.verdict.name(),
                    extract.map(|extract| extract.change.name()),
                    extract.map(|extract| extract.rows as i64),
                    extract.map(|extract| extract.file_bytes as i64),
                    extract
                        .and_then(|extract| extract.snapshot)
                        .or_else(|| load.and_then(|load| load.to))
                        .map(|snapshot| snapshot.0),
                    load.map(|load| load.upserted as i64),
                    load.map(|load| load.deleted as i64),
                    error.map(|error| error.kind),
                    error.map(|error| &error.message),
                    env!("CARGO_PKG_VERSION"),
                    (extract.is_some() || load.is_some()).then(|| report.rejected() as i64),
                    extract.map(ExtractReport::is_whole),
                    load.map(|load| load.conflicts as i64),
                    extract.map(|extract| serde_json::to_string(&extract.late).expect("counts are JSON")),
                    report.latency(),
                ],
            )
            .and_then(|_| {
                self.db.execute("delete from passes where id <= (select max(id) from passes) - ?1", [KEPT])
            })
            .map(drop)
            .map_err(foreign)
    }

    /// The newest passes first.
    pub fn passes(&self, filter: &Filter) -> Result<Vec<Pass>> {
        // Times are written in one zone, so that their texts sort as they do.
        let since = filter.since.map(|since| since.to_rfc3339());
        let read = || -> rusqlite::Result<Vec<Pass>> {
            self.db
                .prepare(
                    "select * from passes \
                     where (?1 = '[]' or stream in (select value from json_each(?1))) \
                     and (?2 = '[]' or verdict in (select value from json_each(?2))) \
                     and (?3 is null or started_at >= ?3) order by id desc limit ?4",
                )?
                .query_map(params![list(&filter.streams), list(&filter.verdicts), since, filter.limit], pass)?
                .collect()
        };
        read().map_err(foreign)
    }

    /// The last pass of a stream.
    pub fn last(&self, stream: &str) -> Result<Option<Pass>> {
        let sql = "select * from passes where stream = ?1 and verb not in (?2, ?3) order by id desc limit 1";
        self.db.query_row(sql, [stream, COMPARE, SAMPLE], pass).optional().map_err(foreign)
    }

    /// When the places of a stream were last compared, or else when it first ran. What failed for a passing
    /// reason does not count.
    pub fn last_compared(&self, stream: &str) -> Result<Option<DateTime<Utc>>> {
        let sql = "select coalesce(max(started_at) filter (where verb = ?2 and \
                   coalesce(error_kind, '') not in ('transient', 'conflict')), min(started_at)) \
                   from passes where stream = ?1";
        let last = self.db.query_row(sql, [stream, COMPARE], |row| row.get::<_, Option<String>>(0));
        Ok(last.map_err(foreign)?.and_then(|text| text.parse().ok()))
    }

    /// How the passes of each stream went, for whoever plans the next.
    pub fn past(&self) -> Result<BTreeMap<String, Past>> {
        let read = || -> rusqlite::Result<BTreeMap<String, Past>> {
            self.db
                .prepare(
                    "with last as (select stream, max(id) as id, \
                     max(id) filter (where verdict in ('done', 'nothing_to_do')) as well \
                     from passes where verb in ('run', 'serve') group by stream) \
                     select last.stream, a.started_at as began, w.started_at as fresh, w.seconds \
                     from last join passes a on a.id = last.id left join passes w on w.id = last.well",
                )?
                .query_map([], |row| {
                    let time = |name: &str| {
                        let text = row.get::<_, Option<String>>(name)?;
                        // A time that cannot be read is one that is not known.
                        Ok::<_, rusqlite::Error>(text.and_then(|text| text.parse::<DateTime<Utc>>().ok()))
                    };
                    let seconds = row.get::<_, Option<f64>>("seconds")?.unwrap_or_default();
                    let takes = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                    let fresh_as_of = time("fresh")?;
                    let succeeded = fresh_as_of
                        .and_then(|began| began.checked_add_signed(TimeDelta::from_std(takes).ok()?));
                    Ok((row.get("stream")?, Past { began: time("began")?, fresh_as_of, succeeded, takes }))
                })?
                .collect()
        };
        read().map_err(foreign)
    }

    /// The streams whose last pass failed or met another runner.
    pub fn failed(&self) -> Result<BTreeSet<String>> {
        let read = || -> rusqlite::Result<BTreeSet<String>> {
            self.db
                .prepare(
                    "select stream from passes where id in \
                     (select max(id) from passes where verb not in ('compare', 'sample') group by stream) \
                     and verdict in ('failed', 'conflict')",
                )?
                .query_map([], |row| row.get(0))?
                .collect()
        };
        read().map_err(foreign)
    }
}

/// Words as SQLite takes a list.
fn list(words: &[String]) -> String {
    serde_json::to_string(words).expect("strings are JSON")
}

/// A file of an older version lacks columns. Two who add one at once both end with it.
fn add_what_is_new(db: &Connection) -> rusqlite::Result<()> {
    let new = [
        ("rows_rejected", "integer"),
        ("read_whole", "integer"),
        ("conflicts", "integer"),
        ("late", "text"),
        ("latency", "real"),
        ("differences", "integer"),
    ];
    for (column, of) in new {
        let lacks = || db.prepare(&format!("select {column} from passes")).is_err();
        if lacks()
            && let Err(error) = db.execute_batch(&format!("alter table passes add column {column} {of}"))
            && lacks()
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Notes go to a log that is synced now and then: a power cut may take the last of them, and never harms
/// the file. Where that cannot be had, on some network drives or while another run opens the file too,
/// each note is synced.
fn spare_the_disk(db: &Connection) -> rusqlite::Result<()> {
    let mode = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0));
    if mode.is_ok_and(|mode| mode == "wal") {
        db.pragma_update(None, "synchronous", "normal")?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    Ok(())
}

fn pass(row: &Row<'_>) -> rusqlite::Result<Pass> {
    let count = |name: &str| row.get::<_, Option<i64>>(name).map(|count| count.map(i64::cast_unsigned));
    Ok(Pass {
        run: row.get("run")?,
        verb: row.get("verb")?,
        stream: row.get("stream")?,
        started_at: row.get::<_, String>("started_at")?.parse().map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
        })?,
        seconds: row.get("seconds")?,
        verdict: row.get("verdict")?,
        change: row.get("change")?,
        rows_extracted: count("rows_extracted")?,
        file_bytes: count("file_bytes")?,
        snapshot: row.get("snapshot")?,
        rows_upserted: count("rows_upserted")?,
        rows_deleted: count("rows_deleted")?,
        rows_rejected: count("rows_rejected")?,
        conflicts: count("conflicts")?,
        rows_late: row.get::<_, Option<String>>("late")?.map(|late| lateness(&late).rows),
        latency_seconds: row.get("latency")?,
        differences: count("differences")?,
        error_kind: row.get("error_kind")?,
        error: row.get("error")?,
    })
}

/// What was noted of late rows; nothing, where that cannot be read.
fn lateness(text: &str) -> Lateness {
    serde_json::from_str(text).unwrap_or_default()
}

fn foreign(source: rusqlite::Error) -> Error {
    Error::new(ErrorKind::Transient, format!("the run history cannot be used: {source}"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::sync::Verdict;

    fn report(stream: &str, verdict: Verdict) -> StreamReport {
        let error = Error::new(ErrorKind::Transient, "the server hung up").with("stream", stream);
        StreamReport {
            started_at: DateTime::UNIX_EPOCH,
            seconds: 1.5,
            verdict,
            error: (verdict == Verdict::Failed).then(|| (&error).into()),
            ..StreamReport::new(stream, Uuid::nil())
        }
    }

    #[test]
    fn the_last_pass_decides_whether_a_stream_failed() {
        let folder = tempfile::tempdir().unwrap();
        let path = History::place(Some(&folder.path().join("frazil.yaml")));
        assert!(History::open_existing(&path).unwrap().is_none());
        let history = History::open(&path).unwrap();
        for (stream, verdict) in [
            ("a", Verdict::Failed),
            ("a", Verdict::Done),
            ("b", Verdict::NothingToDo),
            ("b", Verdict::Failed),
        ] {
            history.record("run", &report(stream, verdict)).unwrap();
        }
        assert_eq!(history.failed().unwrap(), BTreeSet::from(["b".to_owned()]));

        let again = History::open_existing(&path).unwrap().unwrap();
        let everything = Filter { streams: Vec::new(), verdicts: Vec::new(), since: None, limit: 9 };
        let passes = again.passes(&Filter { limit: 3, ..everything.clone() }).unwrap();
        assert_eq!(
            passes.iter().map(|pass| pass.verdict.as_str()).collect::<Vec<_>>(),
            ["failed", "nothing_to_do", "done"]
        );
        assert_eq!(passes[0].error.as_deref(), Some("the server hung up (stream: b)"));
        assert_eq!(passes[0].started_at, DateTime::UNIX_EPOCH);
        let count = |filter| again.passes(&filter).unwrap().len();
        assert_eq!(count(Filter { streams: vec!["a".to_owned()], ..everything.clone() }), 2);
        assert_eq!(count(Filter { verdicts: vec!["failed".to_owned()], ..everything.clone() }), 2);
        let since = |seconds| Filter { since: DateTime::from_timestamp(seconds, 0), ..everything.clone() };
        assert_eq!((count(since(0)), count(since(1))), (4, 0));
        assert!(folder.path().join(".frazil/.gitignore").exists());
    }

    #[test]
    fn a_file_of_an_older_version_gets_what_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.db");
        let older = TABLES.replace(
            "not null,\n    rows_rejected integer,\n    read_whole integer,\n    conflicts integer,\n    late text,\n    latency real,\n    differences integer",
            "not null",
        );
        assert_ne!(older, TABLES);
        Connection::open(&path).unwrap().execute_batch(&older).unwrap();
        for _ in 0..2 {
            History::open(&path).unwrap().record("run", &report("a", Verdict::Done)).unwrap();
        }
        assert_eq!(History::open(&path).unwrap().last("a").unwrap().unwrap().rows_rejected, None);
    }

    #[test]
    fn a_damaged_file_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.db");
        std::fs::write(&path, "this is no database, by its first hundred bytes".repeat(10)).unwrap();
        let error = History::open(&path).err().unwrap();
        assert!(error.to_string().starts_with("cannot open the run history"), "{error}");
    }
}
