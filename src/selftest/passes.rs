//! Passes as processes of their own, and what happens to them: signals, crash points, full disks.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::chance::Chance;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;

/// What no pass of such small tables takes: then it hangs. A first read in a hundred portions takes minutes where
/// everybody else goes first.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often we look whether a process has ended: the grain of the moments at which it is killed.
const LOOK: Duration = Duration::from_millis(2);
/// How many passes are killed one after the other.
const MOST_IN_A_ROW: usize = 12;
/// What a pass writes before its disk is full, in blocks of 512 or 1024 bytes, as the shell has it.
const BLOCKS: [u32; 8] = [0, 1, 2, 4, 8, 16, 64, 256];

/// What goes wrong while a pass runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Trouble {
    /// Nothing, for once.
    None,
    /// It is killed after a part of its usual time.
    Kill(f64),
    /// It is killed, and so is each of those that go on where it stopped: so many in a row.
    Again { kills: usize },
    /// It dies, or fails, at a crash point of the program's own, perhaps not the first time it comes by.
    Point { name: &'static str, passes: usize, kills: bool },
    /// Its files may not grow beyond this: the write that would is its last, or fails.
    SmallFiles { blocks: u32, kills: bool },
    /// It stands still while another one runs, and then goes on.
    Frozen(f64),
    /// A second one runs beside it; one of them may be killed.
    Two { killed: Option<f64> },
    /// Maintenance runs beside it.
    Maintained,
    /// Two servers share the streams, and one is killed.
    Workers { killed: f64 },
    /// Sessions of the source, or of the target, are ended by the server.
    Cut { source: bool, at: f64 },
    /// Whatever who started the test can do.
    Weather { kind: usize, strength: f64 },
}

/// What can go wrong here.
pub(super) struct Possible {
    pub(super) source_sessions: bool,
    pub(super) target_sessions: bool,
    pub(super) weather: usize,
}

impl Trouble {
    /// Something, by chance.
    pub(super) fn draw(chance: &mut Chance, possible: &Possible) -> Self {
        let points = usize::from(faults::compiled_in());
        let cuts = usize::from(possible.source_sessions || possible.target_sessions);
        let what = chance.weighed(&[
            (3, 0),
            (10, 1),
            (10 * points, 2),
            (4, 3),
            (1, 4),
            (4, 5),
            (1, 6),
            (4 * cuts, 7),
            (6 * usize::from(possible.weather > 0), 8),
            (3, 9),
            (6, 10),
        ]);
        let moment = chance.fraction();
        match what {
            1 => Self::Kill(moment),
            2 => {
                let passes = chance.weighed(&[(4, 0), (2, 1), (1, 2), (1, 3), (1, 5), (1, 8)]);
                Self::Point {
                    name: faults::ALL[chance.below(faults::ALL.len())],
                    passes,
                    kills: !chance.one_in(3),
                }
            }
            3 => Self::SmallFiles { blocks: *chance.pick(&BLOCKS), kills: chance.one_in(2) },
            4 => Self::Frozen(moment),
            5 => Self::Two { killed: chance.one_in(2).then_some(moment) },
            6 => Self::Workers { killed: moment },
            7 => {
                let source = if possible.source_sessions && possible.target_sessions {
                    chance.one_in(2)
                } else {
                    possible.source_sessions
                };
                Self::Cut { source, at: moment }
            }
            9 => Self::Maintained,
            10 => Self::Again { kills: 3 + chance.below(MOST_IN_A_ROW - 2) },
            8 => Self::Weather { kind: chance.below(possible.weather), strength: moment },
            _ => Self::None,
        }
    }

    /// Something for maintenance.
    pub(super) fn of_maintenance(chance: &mut Chance) -> Self {
        match chance.below(3) {
            0 if faults::compiled_in() => Self::Point {
                name: faults::OF_MAINTENANCE[chance.below(faults::OF_MAINTENANCE.len())],
                passes: chance.below(2),
                kills: true,
            },
            1 => Self::Kill(chance.fraction()),
            _ => Self::None,
        }
    }
}

/// How processes are started.
pub(super) struct Passes {
    pub(super) program: PathBuf,
    pub(super) folder: PathBuf,
    /// What the configuration's variables stand for.
    pub(super) variables: BTreeMap<String, String>,
}

impl Passes {
    /// A process on the configuration in a folder of its own, with its crash points armed.
    pub(super) fn start(
        &self,
        machine: &str,
        verb: &[&str],
        trouble: &Trouble,
        environment: Vec<(&str, String)>,
    ) -> Result<Running> {
        let folder = self.folder.join(machine);
        let log = folder.join("log");
        let file = || {
            File::options().create(true).append(true).open(&log).map_err(|source| unusable(&folder, &source))
        };
        let mut command = match trouble {
            Trouble::SmallFiles { blocks, kills } => {
                let mut shell = Command::new("sh");
                // The signal kills, as a crash in the middle of a write; ignored, the write fails.
                let signal = if *kills { "" } else { "trap '' XFSZ; " };
                shell
                    .args(["-c", &format!("{signal}ulimit -f {blocks}; exec \"$0\" \"$@\"")])
                    .arg(&self.program);
                shell
            }
            _ => Command::new(&self.program),
        };
        command.args(verb).arg("--config").arg(folder.join("frazil.yaml"));
        // The user's own settings are not part of the test.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FRAZIL_") || name == "FAILPOINTS" {
                command.env_remove(name);
            }
        }
        command.envs(&self.variables).envs(environment);
        if let Trouble::Point { name, passes, kills } = trouble {
            let action = if *kills { "kill" } else { "error" };
            let point = match passes {
                0 => format!("{name}=return({action})"),
                passes => format!("{name}={passes}*off->return({action})"),
            };
            command.env("FAILPOINTS", point);
        }
        // Small files are about the program's own.
        let (out, err) = match trouble {
            Trouble::SmallFiles { .. } => (Stdio::null(), Stdio::null()),
            _ => (Stdio::from(file()?), Stdio::from(file()?)),
        };
        let child = command.current_dir(&folder).stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.map_err(|source| unusable(&self.program, &source))?;
        Ok(Running { child, began: Instant::now(), log, ended: None })
    }
}

/// Why the test cannot use a file.
pub(super) fn unusable(path: &Path, source: &std::io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("the test cannot use a file: {source}"))
        .with("file", path.display())
        .hint("give it a directory of its own with `--dir`")
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, with this exit code.
    Exit(i32),
    /// By a signal.
    Killed,
}

/// A process, killed when nobody wants it any more.
pub(super) struct Running {
    child: Child,
    began: Instant,
    log: PathBuf,
    ended: Option<Ended>,
}

impl Running {
    /// How long it has run.
    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether it has ended, and how.
    pub(super) fn ended(&mut self) -> Result<Option<Ended>> {
        if self.ended.is_none() {
            let status = self.child.try_wait().map_err(|source| unusable(&self.log, &source))?;
            self.ended = status.map(|status: ExitStatus| status.code().map_or(Ended::Killed, Ended::Exit));
        }
        Ok(self.ended)
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Sends a signal: `STOP`, `CONT`, `TERM`.
    pub(super) fn signal(&self, name: &str) {
        let _ = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.child.id())])
            .stderr(Stdio::null())
            .status();
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> Result<Ended> {
        loop {
            if let Some(ended) = self.ended()? {
                return Ok(ended);
            }
            if self.age() > PATIENCE {
                return Err(
                    Error::new(ErrorKind::Internal, "a pass does not end").with("log", self.log.display())
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it is this old, or has ended.
    pub(super) async fn until(&mut self, age: Duration) -> Result<Option<Ended>> {
        while self.age() < age {
            if let Some(ended) = self.ended()? {
                return Ok(Some(ended));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.ended()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.ended(), Ok(Some(_))) {
            // One that stands still does not die before it goes on.
            self.kill();
            let _ = self.child.wait();
        }
    }
}
