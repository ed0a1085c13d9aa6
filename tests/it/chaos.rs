//! The torture test, as `frazil selftest --chaos` has it, on real servers behind a bad network too, and on
//! machines whose clock is wrong.
//!
//! `FRAZIL_TEST_CHAOS=2h` lets it go on for longer; `FRAZIL_TEST_SEED=7` does something else. A failure
//! keeps its folder and says where.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use frazil::connection::Connection;
use frazil::selftest::{Places, Report, Settings, Weather, chaos};

use crate::fixture::{self, Proxy, unique};

/// What happens when nobody asks for something else.
const SEED: u64 = 20_261;

/// By how many seconds a clock is wrong at most.
const MOST_WRONG: f64 = 7200.0;

/// A network that lets go of connections, a store that has bad moments, a machine whose clock is wrong.
struct Bad {
    kinds: Vec<&'static str>,
    proxies: Vec<Proxy>,
    /// What moves the clock of a process, where it is installed.
    library: Option<PathBuf>,
    seconds: Option<f64>,
}

impl Bad {
    fn new(kinds: &[&'static str], proxies: Vec<Proxy>) -> Self {
        let mut kinds = kinds.to_vec();
        let library = fixture::faketime();
        if library.is_some() {
            kinds.push("clock is wrong");
        }
        Self { kinds, proxies, library, seconds: None }
    }
}

impl Weather for Bad {
    fn kinds(&self) -> &[&'static str] {
        &self.kinds
    }

    fn begin(&mut self, kind: usize, strength: f64) {
        let part = |most: f64| (most * strength) as u64;
        match self.kinds[kind] {
            "source cut off" => self.proxies[0].cut_after(part(60_000.0).cast_signed()),
            "target cut off" => self.proxies[1].cut_after(part(40_000.0).cast_signed()),
            // A write whose answer is lost on the way back may have landed.
            "store cut off" => self.proxies[0].cut_after(part(30_000.0).cast_signed()),
            "store answers 503" => self.proxies[0].refuse(part(120.0), 3),
            "clock is wrong" => self.seconds = Some((2.0 * strength - 1.0) * MOST_WRONG),
            other => panic!("{other} is not a kind of weather"),
        }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let (Some(library), Some(seconds)) = (&self.library, self.seconds) else { return Vec::new() };
        vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME", format!("{seconds:+.0}")),
            // Nobody sets the clock by which processes wait.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    fn end(&mut self) {
        self.seconds = None;
        self.proxies.iter().for_each(Proxy::heal);
    }
}

/// A test of so many rounds, or for as long as somebody asks.
fn settings(folder: &Path, places: Places, for_passes: Places, rounds: u64) -> Settings {
    let asked = std::env::var("FRAZIL_TEST_CHAOS").ok();
    let time = asked.map(|asked| frazil::config::units::duration(&asked).unwrap());
    let seed = std::env::var("FRAZIL_TEST_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    Settings {
        program: env!("CARGO_BIN_EXE_frazil").into(),
        seed,
        rounds: if time.is_some() { u64::MAX } else { rounds },
        time: time.unwrap_or(Duration::from_secs(3600)),
        folder: folder.to_owned(),
        places,
        for_passes,
        schema: unique("chaos"),
        keep: true,
    }
}

/// Runs it; what is wrong fails the test and keeps the folder.
async fn run(folder: tempfile::TempDir, settings: Settings, weather: &mut dyn Weather) -> Report {
    let report = chaos(settings, weather, &mut |report| {
        eprintln!("round {} after {:.1} s", report.rounds, report.seconds)
    })
    .await;
    if !report.as_ref().is_ok_and(Report::is_good) {
        let kept = folder.keep();
        panic!("{report:#?}\neverything is kept in {}", kept.display());
    }
    let report = report.unwrap();
    eprintln!("{}", serde_json::to_string(&report).unwrap());
    assert!(report.snapshots_verified > report.rounds, "{report:#?}");
    assert!(report.killed + report.failed > 0 && report.settled > 0, "{report:#?}");
    report
}

fn connection(name: &str, url: &str) -> Connection {
    Connection::parse(name, url).unwrap()
}

#[tokio::test]
async fn in_files_every_snapshot_is_a_state_of_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::in_folder(folder.path(), None, None, None).unwrap();
    let settings = settings(&folder.path().join("test"), places.clone(), places, 14);
    run(folder, settings, &mut Bad::new(&[], Vec::new())).await;
}

#[tokio::test]
async fn between_servers_that_hang_up_every_snapshot_is_a_state_of_the_source() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = (pg.database("chaos_source").await, pg.database("chaos_target").await);
    let proxies = vec![Proxy::tcp(pg.port()), Proxy::tcp(pg.port())];
    let folder = tempfile::tempdir().unwrap();
    let places = |from: &str, to: &str| {
        let (from, to) = (connection("source", from), connection("target", to));
        Places::in_folder(folder.path(), Some(from), Some(to), None).unwrap()
    };
    let direct = places(&source.url(), &target.url());
    let through = places(&source.url_through(proxies[0].port()), &target.url_through(proxies[1].port()));
    let settings = settings(&folder.path().join("test"), direct, through, 8);
    let mut weather = Bad::new(&["source cut off", "target cut off"], proxies);
    run(folder, settings, &mut weather).await;
}

#[tokio::test]
async fn between_databases_of_mariadb_every_snapshot_is_a_state_of_the_source() {
    let Some(server) = fixture::mariadb().await else { return };
    let (source, target) = (server.database("chaos_source").await, server.database("chaos_target").await);
    let proxies = vec![Proxy::tcp(source.port()), Proxy::tcp(target.port())];
    let folder = tempfile::tempdir().unwrap();
    let places = |from: &str, to: &str| {
        let (from, to) = (connection("source", from), connection("target", to));
        Places::in_folder(folder.path(), Some(from), Some(to), None).unwrap()
    };
    let direct = places(&source.url(), &target.url());
    let through = places(&source.url_through(proxies[0].port()), &target.url_through(proxies[1].port()));
    let mut settings = settings(&folder.path().join("test"), direct, through, 8);
    // Its schema is a database, which nobody else takes away.
    settings.keep = false;
    let mut weather = Bad::new(&["source cut off", "target cut off"], proxies);
    run(folder, settings, &mut weather).await;
}

#[tokio::test]
async fn on_a_store_with_bad_moments_every_snapshot_is_a_state_of_the_source() {
    let (Some(pg), Some(s3)) = (fixture::postgres().await, fixture::s3().await) else { return };
    let source = pg.database("chaos_s3").await;
    let proxy = Proxy::http(s3.port());
    let folder = tempfile::tempdir().unwrap();
    let warehouse = s3.warehouse("chaos");
    let places = |options| {
        let lake = frazil::lake::LakeSettings {
            warehouse: warehouse.clone(),
            catalog: "filesystem".into(),
            options,
        };
        Places::in_folder(folder.path(), Some(connection("source", &source.url())), None, Some(lake)).unwrap()
    };
    let (direct, through) = (places(s3.options()), places(s3.options_through(proxy.port())));
    let settings = settings(&folder.path().join("test"), direct, through, 5);
    let mut weather = Bad::new(&["store answers 503", "store cut off"], vec![proxy]);
    let report = run(folder, settings, &mut weather).await;
    // Other readers say the same. In these two tables the lake drops what the source drops.
    for table in ["lines", "visits"] {
        let location = format!("{warehouse}/{}/{table}", report.schema);
        let query = format!("select * from \"{}\".{table}", report.schema);
        fixture::judge_in(fixture::Store::S3(&s3), &location, &source.url(), &query);
    }
}

#[test]
fn the_program_tests_itself() {
    let selftest = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_frazil"));
        command.args(["selftest", "--chaos", "--seed", "3", "--output", "json"]).args(arguments);
        fixture::ran(command.output().unwrap())
    };
    let ran = selftest(&["--rounds", "2"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((report["seed"].as_u64(), report["rounds"].as_u64()), (Some(3), Some(2)));
    assert_eq!(report["wrong"].as_array().map(Vec::len), Some(0));
    assert!(!Path::new(report["folder"].as_str().unwrap()).exists(), "nothing is left: {report}");
    assert!(ran.stderr.contains("frazil selftest --chaos --seed 3"), "{ran:?}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "").unwrap();
    let ran = selftest(&["--rounds", "1", "--dir", &folder.path().display().to_string()]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("the directory is not empty"), "{ran:?}");
}
