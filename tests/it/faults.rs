//! Crashes and bad weather: after whatever happens, one clean run makes source, lake and target equal,
//! and no row is doubled.
//!
//! `FRAZIL_TEST_KILLS=300` makes the random part longer; `FRAZIL_TEST_SEED=7` repeats one.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use frazil::faults;

use crate::fixture::{self, Database, Pipeline, Proxy};
use crate::sync::{assert_same, change_orders, seed_orders, two_databases};

const ORDERS: &str = "select * from orders";
const AUDIT: &str = "select id, what from audit";

/// Both modes at once: rows that change, and rows that are only ever added.
const STREAMS: [&str; 2] =
    ["public.orders: { cursor: updated_at }", "public.audit: { mode: append, cursor: id }"];

async fn seed(source: &Database) {
    seed_orders(source, 2000).await;
    source.run("create table audit (id bigserial primary key, what text)").await;
    change(source, 0).await;
}

async fn change(source: &Database, round: u32) {
    change_orders(source, round).await;
    source
        .run(&format!("insert into audit (what) select 'round {round}' from generate_series(1, 100)"))
        .await;
}

/// What every test here ends with.
async fn one_clean_run_heals(pipeline: &Pipeline, source: &Database, target: &Database) {
    pipeline.ok(&["run"]);
    assert_same(source, target, ORDERS).await;
    assert_same(source, target, AUDIT).await;
}

fn judge(pipeline: &Pipeline, source: &Database) {
    fixture::judge(&pipeline.location("public", "orders"), &source.url(), ORDERS);
    fixture::judge(&pipeline.location("public", "audit"), &source.url(), AUDIT);
}

#[tokio::test]
async fn a_crash_at_each_named_point_loses_and_doubles_nothing() {
    crash_at_each_named_point("points", &STREAMS, "").await;
}

#[tokio::test]
async fn a_crash_in_a_whole_read_loses_and_doubles_nothing() {
    let streams = ["public.orders: { change: full }", "public.audit: { mode: replace }"];
    // What only a whole read sees.
    let deletes = "delete from orders where id % 31 = 7; delete from audit where id % 31 = 7";
    crash_at_each_named_point("whole", &streams, deletes).await;
}

async fn crash_at_each_named_point(name: &str, streams: &[&str], also: &str) {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, name).await;
    seed(&source).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), streams);
    let mut round = 1;
    for point in faults::ALL {
        // The first and the second time that it is passed: the first stream, and the other one.
        for when in ["", "1*off->"] {
            for action in ["kill", "error"] {
                change(&source, round).await;
                source.run(also).await;
                round += 1;
                let ran = pipeline.run_with_faults(&["run"], &format!("{point}={when}return({action})"));
                assert_ne!(ran.code, Some(0), "{point} was never passed: {ran:?}");
                assert_eq!(ran.code.is_none(), action == "kill", "{ran:?}");
            }
        }
        one_clean_run_heals(&pipeline, &source, &target).await;
    }
    judge(&pipeline, &source);
}

#[tokio::test]
async fn crashes_in_the_very_first_run_leave_nothing_half_made() {
    let Some(pg) = fixture::postgres().await else { return };
    for point in faults::ALL {
        let (source, target) = two_databases(&pg, "first").await;
        seed(&source).await;
        let pipeline = Pipeline::new(&source.url(), &target.url(), &STREAMS);
        let ran = pipeline.run_with_faults(&["run"], &format!("{point}=return(kill)"));
        assert_eq!(ran.code, None, "{point}: {ran:?}");
        change(&source, 1).await;
        one_clean_run_heals(&pipeline, &source, &target).await;
    }
}

#[tokio::test]
async fn kills_at_random_moments_lose_and_double_nothing() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "kills").await;
    let kills = number("FRAZIL_TEST_KILLS").unwrap_or(25);
    let seed_of_chance = number("FRAZIL_TEST_SEED").unwrap_or_else(|| std::process::id().into());
    eprintln!("FRAZIL_TEST_SEED={seed_of_chance}");
    let mut chance = Chance(seed_of_chance);
    seed(&source).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &STREAMS);
    let mut longest = Duration::from_millis(1500);
    let mut killed = 0;
    for round in 1.. {
        if killed == kills {
            break;
        }
        change(&source, round).await;
        let mut child = pipeline.start(&["run"]);
        let started = std::time::Instant::now();
        let life = longest.mul_f64(chance.fraction());
        while started.elapsed() < life && child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        match child.try_wait().unwrap() {
            // Too late: it was done. The next moment is drawn from its lifetime.
            Some(status) => {
                assert!(status.success(), "after {killed} kills a run failed by itself: {status}");
                longest = started.elapsed();
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
            }
        }
        if chance.fraction() < 0.2 {
            one_clean_run_heals(&pipeline, &source, &target).await;
        }
    }
    one_clean_run_heals(&pipeline, &source, &target).await;
    judge(&pipeline, &source);
}

#[tokio::test]
async fn two_runners_at_once_double_nothing() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "runners").await;
    seed(&source).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &STREAMS);
    let mut conflicts = 0;
    for round in 1..6 {
        let run =
            || pipeline.command(&["run"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let both = [run(), run(), run()];
        let mut winners = 0;
        for child in both {
            let ran = fixture::ran(child.wait_with_output().unwrap());
            assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
            winners += u32::from(ran.code == Some(0));
            if ran.code == Some(3) {
                conflicts += 1;
                assert!(ran.stderr.contains("another"), "it says that somebody was faster: {ran:?}");
            }
        }
        // Each may lose one stream and win the other; between them the work is done.
        eprintln!("round {round}: {winners} of 3 had no conflict");
        change(&source, round).await;
    }
    eprintln!("{conflicts} conflicts");
    one_clean_run_heals(&pipeline, &source, &target).await;
    judge(&pipeline, &source);
}

#[tokio::test]
async fn a_connection_that_is_cut_costs_a_retry() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "cut").await;
    seed(&source).await;
    let (near_source, near_target) = (Proxy::tcp(pg.port()), Proxy::tcp(pg.port()));
    let urls = (source.url_through(near_source.port()), target.url_through(near_target.port()));
    let pipeline = Pipeline::new(&urls.0, &urls.1, &STREAMS);
    let mut failed = 0;
    for (round, bytes) in [100, 3_000, 20_000, 60_000, 150_000].into_iter().enumerate() {
        for proxy in [&near_source, &near_target] {
            proxy.cut_after(bytes);
            let ran = pipeline.run(&["run"]);
            proxy.heal();
            if ran.code != Some(0) {
                failed += 1;
                assert!(matches!(ran.code, Some(1 | 3)), "{ran:?}");
                assert!(!ran.stderr.contains("bug in frazil"), "{ran:?}");
                assert!(!ran.stderr.contains(fixture::PASSWORD), "{ran:?}");
            }
        }
        change(&source, round as u32).await;
    }
    assert!(failed >= 4, "the connection was cut {failed} times only");
    one_clean_run_heals(&pipeline, &source, &target).await;
    judge(&pipeline, &source);
}

#[tokio::test]
async fn a_store_that_answers_503_costs_time_or_a_retry() {
    let (Some(pg), Some(s3)) = (fixture::postgres().await, fixture::s3().await) else { return };
    let (source, target) = two_databases(&pg, "throttled").await;
    seed(&source).await;
    let proxy = Proxy::http(s3.port());
    let (warehouse, options) = (s3.warehouse("throttled"), s3.options_through(proxy.port()));
    let pipeline = Pipeline::with_lake(&source.url(), &target.url(), &warehouse, &options, &STREAMS);

    let before = proxy.requests();
    pipeline.ok(&["run"]);
    let requests = proxy.requests() - before;
    // Now and then a request is refused: nobody notices.
    for round in 1..6 {
        change(&source, round).await;
        proxy.refuse(u64::from(round) * requests / 6, 2);
        one_clean_run_heals(&pipeline, &source, &target).await;
        proxy.heal();
    }
    judge_on_s3(&s3, &pipeline, &source);
}

#[tokio::test]
async fn a_store_that_goes_away_fails_the_run_and_nothing_else() {
    let (Some(pg), Some(s3)) = (fixture::postgres().await, fixture::s3().await) else { return };
    let (source, target) = two_databases(&pg, "gone").await;
    seed(&source).await;
    let proxy = Proxy::http(s3.port());
    let (warehouse, options) = (s3.warehouse("gone"), s3.options_through(proxy.port()));
    let pipeline = Pipeline::with_lake(&source.url(), &target.url(), &warehouse, &options, &STREAMS);
    pipeline.ok(&["run"]);
    change(&source, 1).await;
    // A write whose answer is lost on the way back may have landed.
    for bytes in [0, 1500, 4000] {
        proxy.cut_after(bytes);
        let mut child = pipeline.start(&["run"]);
        // Clients retry for minutes; a person would not wait either.
        tokio::time::sleep(Duration::from_secs(4)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        proxy.heal();
    }
    one_clean_run_heals(&pipeline, &source, &target).await;
    judge_on_s3(&s3, &pipeline, &source);
}

fn judge_on_s3(s3: &fixture::S3, pipeline: &Pipeline, source: &Database) {
    let store = || fixture::Store::S3(s3);
    fixture::judge_in(store(), &pipeline.location("public", "orders"), &source.url(), ORDERS);
    fixture::judge_in(store(), &pipeline.location("public", "audit"), &source.url(), AUDIT);
}

#[tokio::test]
async fn a_full_disk_fails_the_run_and_nothing_else() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "full").await;
    seed(&source).await;
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(folder.path());
    let warehouse = folder.path().join("lake").display().to_string();
    let pipeline =
        Pipeline::with_lake(&source.url(), &target.url(), &warehouse, &Default::default(), &STREAMS);
    pipeline.ok(&["run"]);
    // Rows that do not compress, more than the disk has room for.
    source.run("insert into audit (what) select string_agg(gen_random_uuid()::text, '') from generate_series(1, 600000) i group by i % 20000").await;
    let ran = disk.run(pipeline.command(&["run"]));
    assert!(matches!(ran.code, Some(1 | 3)), "{ran:?}");
    assert!(!ran.stderr.contains("bug in frazil"), "{ran:?}");
    assert!(ran.stderr.contains("hint:"), "{ran:?}");
    // The small stream may have come through; what is there is whole.
    source.run("delete from audit where length(what) > 100").await;
    change(&source, 1).await;
    disk.grow();
    one_clean_run_heals(&pipeline, &source, &target).await;
    judge(&pipeline, &source);
}

/// Files are written anew beside the old ones, and there is no room for that.
#[tokio::test]
async fn a_full_disk_during_maintenance_changes_nothing() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "full_maintain").await;
    source.run("create table audit (id bigserial primary key, what text)").await;
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(folder.path());
    let warehouse = folder.path().join("lake").display().to_string();
    let pipeline =
        Pipeline::with_lake(&source.url(), &target.url(), &warehouse, &Default::default(), &STREAMS[1..]);
    // Six files of a quarter of a megabyte: rows that do not compress.
    for _ in 0..6 {
        source.run("insert into audit (what) select string_agg(gen_random_uuid()::text, '') from generate_series(1, 12000) i group by i % 400").await;
        pipeline.ok(&["sync"]);
    }
    let whole = || fixture::judge(&pipeline.location("public", "audit"), &source.url(), AUDIT);
    let versions = || {
        pipeline.ok(&["query", "select count(*) from public.\"audit$snapshots\"", "--output", "csv"]).stdout
    };
    let (before, files) = (versions(), pipeline.parquet_files().len());
    disk.fill();
    for _ in 0..2 {
        let ran = disk.run(pipeline.command(&["maintain"]));
        assert!(matches!(ran.code, Some(1 | 3)), "{ran:?}");
        assert!(!ran.stderr.contains("bug in frazil") && ran.stderr.contains("hint:"), "{ran:?}");
        assert_eq!((versions(), pipeline.parquet_files().len()), (before.clone(), files), "nothing is left");
        whole();
    }
    disk.grow();
    pipeline.ok(&["maintain", "--remove-orphans", "--orphan-age", "0s", "--force"]);
    assert_ne!(versions(), before);
    whole();
    source.run("insert into audit (what) values ('after')").await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, AUDIT).await;
    whole();
}

/// A disk of a few megabytes: a tmpfs where we may mount one, else a limit on the size of files.
struct SmallDisk {
    mounted: Option<PathBuf>,
}

impl SmallDisk {
    const BYTES: u64 = 4 << 20;
    /// Room for metadata, and no more.
    const LEFT: u64 = 256 << 10;

    fn new(folder: &Path) -> Self {
        let size = format!("size={}", Self::BYTES);
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        Self { mounted: mounted.then(|| folder.to_owned()) }
    }

    /// Leaves next to no room. Without a mount, the limit on the size of files is near enough.
    fn fill(&self) {
        let Some(folder) = &self.mounted else { return };
        let mut file = std::fs::File::create(folder.join("other")).unwrap();
        let mut length = 0;
        while let Ok(written) = file.write(&[1; 4096]) {
            length += written as u64;
        }
        file.set_len(length - Self::LEFT).unwrap();
    }

    /// Somebody made room.
    fn grow(&self) {
        if let Some(folder) = &self.mounted {
            let grown = Command::new("mount").args(["-o", "remount,size=1g"]).arg(folder).status().unwrap();
            assert!(grown.success());
        }
    }

    /// Runs a command; without a mount, no file that it writes may be longer than the disk.
    fn run(&self, mut command: Command) -> fixture::Ran {
        if self.mounted.is_some() {
            return fixture::ran(command.output().unwrap());
        }
        // The signal is ignored, so that the write fails as on a full disk.
        let mut limited = Command::new("bash");
        limited
            .args(["-c", &format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", Self::BYTES / 8 / 1024)]);
        limited.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(key, value),
                None => limited.env_remove(key),
            };
        }
        fixture::ran(
            limited.current_dir(command.get_current_dir().unwrap()).process_group(0).output().unwrap(),
        )
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Some(folder) = &self.mounted {
            let _ = Command::new("umount").arg("-l").arg(folder).status();
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Numbers that look like chance and come again with their seed (splitmix64).
struct Chance(u64);

impl Chance {
    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    }
}
