//! Who changed state by hand, when, and how: one line of JSON a deed, in a file that only grows.
//!
//! Passes are not in it: those are in the history and in the lake's snapshots. Here is what people ask
//! for: a position that is set, a table that is rolled back, a stream that is paused. Nothing of the
//! engine reads it back, and nothing of it is ever rewritten; the system can enforce that
//! (`chattr +a .frazil/journal.jsonl`).

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Something that somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// When.
    pub at: DateTime<Utc>,
    /// Who, as the system says; `http` for whoever asked a server by HTTP.
    pub who: String,
    /// What: `set`, `rollback`, `full_refresh`, `pause`, `resume`, `trigger`,
    /// `dlq_replay`, `dlq_drop`, `conflict_resolve`.
    pub deed: String,
    /// To which stream or lake table.
    pub subject: String,
    /// What was before, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

impl Deed {
    /// A deed of whoever runs this process.
    pub fn now(deed: &str, subject: impl Into<String>) -> Self {
        Self::by(&who(), deed, subject)
    }

    /// Somebody's deed.
    pub fn by(who: &str, deed: &str, subject: impl Into<String>) -> Self {
        let (who, deed, subject) = (who.to_owned(), deed.to_owned(), subject.into());
        Self { at: Utc::now(), who, deed, subject, from: None, to: None }
    }

    /// Says from where to where.
    #[must_use]
    pub fn moved(mut self, from: Option<impl ToString>, to: Option<impl ToString>) -> Self {
        (self.from, self.to) = (from.map(|from| from.to_string()), to.map(|to| to.to_string()));
        self
    }
}

/// Who runs this process, as far as can be known: `ann@loader-1 (process 4711)`. It is no proof.
pub fn who() -> String {
    let first = |names: [&str; 3]| {
        names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    };
    let unknown = || "unknown".to_owned();
    let user = first(["USER", "LOGNAME", "USERNAME"]).unwrap_or_else(unknown);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = kernel.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
    let host = host.or_else(|| first(["HOSTNAME", "HOST", "COMPUTERNAME"])).unwrap_or_else(unknown);
    format!("{user}@{host} (process {})", std::process::id())
}

/// The file, ready to be written to.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// The file beside the run history.
    pub fn place(history: &Path) -> PathBuf {
        history.with_file_name("journal.jsonl")
    }

    /// Opens it, or begins it. To be done before the deed: what cannot be noted should not be done.
    pub fn open(path: &Path) -> Result<Self> {
        let begin = || -> std::io::Result<File> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
            // A crash may have cut the last line: what comes next gets one of its own.
            if file.seek(SeekFrom::End(0))? > 0 {
                file.seek(SeekFrom::End(-1))?;
                let mut last = [0];
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    file.write_all(b"\n")?;
                }
            }
            Ok(file)
        };
        let file = begin().map_err(|source| failed(path, &source))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Notes a deed; it is on the disk when this returns.
    pub fn note(&mut self, deed: &Deed) -> Result<()> {
        let mut line = serde_json::to_string(deed).expect("a deed is JSON");
        line.push('\n');
        // In one piece: others may be writing.
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|source| failed(&self.path, &source))
    }

    /// The newest deeds first, and how many lines cannot be read.
    pub fn deeds(path: &Path, since: Option<DateTime<Utc>>, limit: usize) -> Result<(Vec<Deed>, usize)> {
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(failed(path, &source)),
        };
        let lines = text.lines().filter(|line| !line.is_empty());
        let (mut deeds, mut damaged) = (Vec::new(), 0);
        for line in lines {
            match serde_json::from_str::<Deed>(line) {
                Ok(deed) if since.is_none_or(|since| deed.at >= since) => deeds.push(deed),
                Ok(_) => {}
                Err(_) => damaged += 1,
            }
        }
        deeds.reverse();
        deeds.truncate(limit);
        Ok((deeds, damaged))
    }
}

fn failed(path: &Path, source: &std::io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("the journal of changes by hand cannot be used: {source}"))
        .with("file", path.display())
        .hint("make the folder writable: what cannot be noted is not done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeds_are_added_and_read_newest_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".frazil/journal.jsonl");
        assert_eq!(Journal::deeds(&path, None, 9).unwrap(), (Vec::new(), 0));
        let deed = |deed: &str, seconds| Deed {
            at: DateTime::from_timestamp(seconds, 0).unwrap(),
            ..Deed::by("ann", deed, "public.orders").moved(Some(1), Some(2))
        };
        Journal::open(&path).unwrap().note(&deed("pause", 1)).unwrap();
        // Cut by a crash, and by somebody who is still writing.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at\":\"20").unwrap();
        let mut journal = Journal::open(&path).unwrap();
        journal.note(&deed("set", 2)).unwrap();
        Journal::open(&path).unwrap().note(&deed("rollback", 3)).unwrap();
        journal.note(&deed("resume", 4)).unwrap();
        let names = |since: Option<i64>, limit| {
            let since = since.and_then(|since| DateTime::from_timestamp(since, 0));
            let (deeds, damaged) = Journal::deeds(&path, since, limit).unwrap();
            assert_eq!(damaged, 1);
            deeds.into_iter().map(|deed| deed.deed).collect::<Vec<_>>()
        };
        assert_eq!(names(None, 9), ["resume", "rollback", "set", "pause"]);
        assert_eq!(names(Some(2), 2), ["resume", "rollback"]);
        let first = Journal::deeds(&path, None, 9).unwrap().0.pop().unwrap();
        assert_eq!(
            (first.who.as_str(), first.from.as_deref(), first.to.as_deref()),
            ("ann", Some("1"), Some("2"))
        );
    }
}
