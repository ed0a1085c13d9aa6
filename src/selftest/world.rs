//! One round after the other: changes, a pass that meets with trouble, and a look at what came of it.

use std::time::Duration;

use super::chance::Chance;
use super::database::Database;
use super::lakeside::{Followed, Lakeside};
use super::model::{Edit, How, PICKY, PICKY_CHECK, SPECS, Table};
use super::moves::{Reshape, Transaction, create};
use super::passes::{Ended, Passes, Possible, Running, Trouble};
use super::place::{MACHINES, Way, configure, make_folder, stream_name, target_schema};
use super::report::Report;
use super::values::{Dialect, Kind};
use super::{ROUNDS_TO_REST, Settings, Weather};
use crate::error::Result;
use crate::table::TableId;

/// A reader that was killed may hold the log for a moment: who comes after it waits.
pub(super) const PATIENTLY: [&str; 2] = ["--retry-for", "20s"];
/// What the chance of each part is drawn for: one part does not move another.
const CHANGES: u64 = 1;
const TROUBLES: u64 = 2;
/// Rows that each table begins with.
const FIRST_ROWS: usize = 120;
/// How long a pass takes, before one was seen.
pub(super) const USUAL: Duration = Duration::from_millis(1500);
/// How long two servers share the streams.
const SHARED: Duration = Duration::from_millis(3500);
/// How long a stopped process stands still.
const FROZEN: Duration = Duration::from_millis(700);
/// A transaction is held open for up to this while passes run.
const HELD_MILLIS: usize = 60;
/// The application's clock is slow by less than this; with the age of late rows it is less than their `lag`.
const MOST_SKEW: usize = 300;
/// So many transactions follow each other without a pause.
const STORM: usize = 40;
/// How many findings a report lists.
pub(super) const MOST_WRONG: usize = 20;

/// The source, its model, and what is under test.
pub(super) struct World<'a> {
    pub(super) settings: Settings,
    weather: &'a mut dyn Weather,
    pub(super) source: Database,
    /// A second session, for transactions that stay open.
    aside: Database,
    open: Option<Transaction>,
    pub(super) lake: Lakeside,
    pub(super) tables: Vec<Table>,
    pub(super) followed: Vec<Followed>,
    passes: Passes,
    changes: Chance,
    pub(super) troubles: Chance,
    usual: Duration,
    /// By how many seconds the application's clock is slow.
    skew: i64,
    /// How changes of one of the tables are found.
    pub(super) way: Way,
    pub(super) report: Report,
}

/// A session with the target.
pub(super) async fn open_target(settings: &Settings) -> Result<Database> {
    let schema = target_schema(&settings.places, &settings.schema);
    Database::open(&settings.places.target, &schema).await
}

impl<'a> World<'a> {
    /// Makes the tables and their first rows.
    pub(super) async fn new(settings: Settings, weather: &'a mut dyn Weather) -> Result<Self> {
        let folder = make_folder(&settings.folder)?;
        let source = Database::open(&settings.places.source, &settings.schema).await?;
        let way = source.best_way().await?;
        let variables = configure(&folder, &settings.for_passes, &settings.schema, way)?;
        let aside = Database::open(&settings.places.source, &settings.schema).await?;
        source.make_schema().await?;
        let target = open_target(&settings).await?;
        target.make_schema().await?;
        // Somebody else's table, with a condition of its own.
        let picky = target.name(PICKY);
        target.run(&format!("CREATE TABLE {picky} (id bigint PRIMARY KEY, CHECK ({PICKY_CHECK}))")).await?;
        let lake = Lakeside::open(&settings.places.lake).await?;
        let report = Report {
            seed: settings.seed,
            folder: folder.clone(),
            schema: settings.schema.clone(),
            ..Report::default()
        };
        let mut world = Self {
            changes: Chance::of(settings.seed, CHANGES),
            troubles: Chance::of(settings.seed, TROUBLES),
            passes: Passes { program: settings.program.clone(), folder, variables },
            settings,
            weather,
            source,
            aside,
            open: None,
            lake,
            tables: SPECS.iter().map(Table::new).collect(),
            followed: SPECS.iter().map(|_| Followed::default()).collect(),
            usual: USUAL,
            skew: 0,
            way,
            report,
        };
        for (index, spec) in SPECS.iter().enumerate() {
            let statement = create(spec, world.source.dialect(), &world.source.name(spec.name));
            world.source.run(&statement).await?;
            let rows = Transaction::first_rows(&mut world.changes, &mut world.tables, index, FIRST_ROWS);
            world.happen(rows, Duration::ZERO).await?;
        }
        if way == Way::Trigger {
            let mut running = world.start(0, &["setup"], &Trouble::None)?;
            running.wait().await?;
            world.ended(&mut running, false)?;
        }
        Ok(world)
    }

    /// Some changes, a pass with trouble, more changes meanwhile, and a look at the lake.
    pub(super) async fn round(&mut self) -> Result<()> {
        self.report.rounds += 1;
        for _ in 0..self.changes.below(4) {
            self.transaction(Duration::ZERO).await?;
        }
        if self.changes.one_in(4) {
            self.end_open().await?;
            self.reshape().await?;
        }
        if self.changes.one_in(3) {
            self.leave_open().await?;
        }
        if self.changes.one_in(5) {
            self.skew = self.changes.below(MOST_SKEW) as i64;
            self.report.count("clock jump");
        }
        if self.troubles.one_in(8) {
            self.start_anew().await?;
        }
        let possible = Possible {
            source_sessions: self.settings.places.source.scheme() != "sqlite",
            target_sessions: self.settings.places.target.scheme() != "sqlite",
            weather: self.weather.kinds().len(),
        };
        let trouble = Trouble::draw(&mut self.troubles, &possible);
        let verb = *self.troubles.pick(&["run", "run", "run", "run", "sync", "load"]);
        // Now and then as many as fit into the time of a pass.
        let meanwhile = if self.changes.one_in(6) { STORM } else { self.changes.below(4) };
        self.pass(verb, &trouble, meanwhile).await?;
        if self.changes.one_in(2) {
            self.end_open().await?;
        }
        if self.troubles.one_in(5) {
            let trouble = Trouble::of_maintenance(&mut self.troubles);
            self.pass("maintain", &trouble, 1).await?;
        }
        self.look().await
    }

    /// Whether all is let come to rest now.
    pub(super) fn rests(&mut self, rounds: usize) -> bool {
        self.changes.one_in(ROUNDS_TO_REST) || rounds > 2 * ROUNDS_TO_REST
    }

    /// The owner of a target table that we may not alter widens what was widened in the source.
    pub(super) async fn owner_widens(&self) -> Result<()> {
        let target = open_target(&self.settings).await?;
        let dialect = target.dialect();
        let theirs =
            self.tables.iter().filter(|table| table.spec.name == PICKY && dialect != Dialect::Sqlite);
        for table in theirs {
            for (at, column) in table.now.columns.iter().enumerate().skip(table.spec.key) {
                if matches!(column.kind, Kind::Long | Kind::Wide) {
                    let widen = Reshape::Widen(at, column.kind);
                    let widen = widen.statement(&table.now, dialect, &target.name(PICKY));
                    // The target may not have it yet.
                    let _ = target.run(&widen).await;
                }
            }
        }
        Ok(())
    }

    async fn pass(&mut self, verb: &'static str, trouble: &Trouble, meanwhile: usize) -> Result<()> {
        self.owner_widens().await?;
        self.report.count(&self.name(trouble));
        if let Trouble::Workers { killed } = trouble {
            return self.serve(*killed, meanwhile).await;
        }
        let one = self.troubles.pick(&SPECS).name;
        let one = stream_name(&self.settings.places.source, &self.settings.schema, one);
        let verb: &[&str] = match verb {
            "run" if self.troubles.one_in(3) => &["run", "--select", &one],
            "maintain" => &["maintain"],
            "run" if self.troubles.one_in(3) => &["run", "--parallel", "2", "--memory", "512MiB"],
            // There may be nothing in the lake to be loaded: not yet, or not any more.
            "load" if self.followed.iter().all(Followed::is_there) => &["load"],
            "sync" => &["sync"],
            _ => &["run"],
        };
        let patiently = if self.way == Way::Log && verb[0] == "run" { &PATIENTLY[..] } else { &[] };
        let verb = &[verb, patiently].concat()[..];
        if let Trouble::Weather { kind, strength } = trouble {
            self.weather.begin(*kind, *strength);
        }
        let mut running = self.start(0, verb, trouble)?;
        let mut second = match trouble {
            Trouble::Two { .. } => Some(self.start(1, verb, &Trouble::None)?),
            Trouble::Maintained => Some(self.start(1, &["maintain"], &Trouble::None)?),
            _ => None,
        };
        let moment = |part: f64| self.usual.mul_f64(part);
        match trouble {
            Trouble::Kill(at) | Trouble::Two { killed: Some(at) } => {
                let at = moment(*at);
                self.transactions(meanwhile).await?;
                if running.until(at).await?.is_none() {
                    running.kill();
                }
            }
            Trouble::Again { kills } => {
                self.transactions(meanwhile).await?;
                for _ in 1..*kills {
                    self.kill_somewhere(&mut running).await?;
                    running = self.start(0, verb, &Trouble::None)?;
                }
                self.kill_somewhere(&mut running).await?;
            }
            Trouble::Frozen(at) => {
                let at = moment(*at);
                if running.until(at).await?.is_none() {
                    running.signal("STOP");
                    // It may hold the only lock of a SQLite source: nothing is written meanwhile.
                    let mut other = self.start(1, verb, &Trouble::None)?;
                    let ended = other.until(FROZEN).await?;
                    running.signal("CONT");
                    if ended.is_none() {
                        other.wait().await?;
                    }
                    self.ended(&mut other, true)?;
                }
                self.transactions(meanwhile).await?;
            }
            Trouble::Cut { source, at } => {
                let at = moment(*at);
                self.transactions(meanwhile).await?;
                let knife = match source {
                    true => Database::open(&self.settings.places.source, &self.settings.schema).await?,
                    false => open_target(&self.settings).await?,
                };
                // From its moment on, until a session was there to be ended.
                running.until(at).await?;
                while running.ended()?.is_none() && knife.cut().await? == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            _ => self.transactions(meanwhile).await?,
        }
        if matches!(trouble, Trouble::Weather { .. }) {
            // Clients retry for minutes; a person would not wait either.
            if running.until(self.usual * 3).await?.is_none() {
                running.kill();
            }
            running.wait().await?;
            self.weather.end();
        }
        if !matches!(trouble, Trouble::Again { .. }) {
            running.wait().await?;
            self.ended(&mut running, *trouble != Trouble::None)?;
        }
        if let Some(mut second) = second.take() {
            second.wait().await?;
            self.ended(&mut second, true)?;
        }
        Ok(())
    }

    /// Kills a pass after a part of its usual time.
    async fn kill_somewhere(&mut self, running: &mut Running) -> Result<()> {
        let at = self.usual.mul_f64(self.troubles.fraction());
        if running.until(at).await?.is_none() {
            running.kill();
        }
        running.wait().await?;
        self.ended(running, true)
    }

    /// Two servers share the streams; one is killed, the other one is asked to stop.
    async fn serve(&mut self, killed: f64, meanwhile: usize) -> Result<()> {
        let verb = ["serve", "--share"];
        let mut first = self.start(0, &verb, &Trouble::None)?;
        let mut second = self.start(1, &verb, &Trouble::None)?;
        self.transactions(meanwhile).await?;
        first.until(SHARED.mul_f64(killed)).await?;
        first.kill();
        first.wait().await?;
        self.ended(&mut first, true)?;
        self.transactions(1).await?;
        second.until(SHARED).await?;
        second.signal("TERM");
        second.wait().await?;
        self.ended(&mut second, true)
    }

    pub(super) fn start(&mut self, machine: usize, verb: &[&str], trouble: &Trouble) -> Result<Running> {
        self.report.passes += 1;
        self.passes.start(MACHINES[machine], verb, trouble, self.weather.environment())
    }

    /// Takes note of how a pass ended. What a pass says of itself is only believed where it is bad: the rows
    /// are what counts.
    pub(super) fn ended(&mut self, running: &mut Running, troubled: bool) -> Result<()> {
        match running.ended()? {
            Some(Ended::Exit(0)) => self.usual = (self.usual + running.age()) / 2,
            Some(Ended::Killed) => self.report.killed += 1,
            // A first read of rows that are read once only does not begin beside an open transaction.
            Some(Ended::Exit(1 | 3)) if troubled || self.open.is_some() => self.report.failed += 1,
            Some(Ended::Exit(code)) => {
                self.wrong(format!("a pass that nobody disturbed ended with exit code {code}"));
            }
            None => {}
        }
        Ok(())
    }

    fn name(&self, trouble: &Trouble) -> String {
        match trouble {
            Trouble::None => "none".to_owned(),
            Trouble::Kill(_) => "kill".to_owned(),
            Trouble::Again { .. } => "kill, again and again".to_owned(),
            Trouble::Point { name, kills: true, .. } => format!("die at {name}"),
            Trouble::Point { name, kills: false, .. } => format!("fail at {name}"),
            Trouble::SmallFiles { kills: true, .. } => "die in a write".to_owned(),
            Trouble::SmallFiles { kills: false, .. } => "full disk".to_owned(),
            Trouble::Frozen(_) => "stand still, overtaken".to_owned(),
            Trouble::Two { killed: Some(_) } => "two at once, one killed".to_owned(),
            Trouble::Two { killed: None } => "two at once".to_owned(),
            Trouble::Maintained => "maintained meanwhile".to_owned(),
            Trouble::Workers { .. } => "two workers, one killed".to_owned(),
            Trouble::Cut { source: true, .. } => "source ends sessions".to_owned(),
            Trouble::Cut { source: false, .. } => "target ends sessions".to_owned(),
            Trouble::Weather { kind, .. } => self.weather.kinds()[*kind].to_owned(),
        }
    }

    async fn transactions(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let pause = self.changes.below(HELD_MILLIS) * usize::from(count < STORM);
            let pause = Duration::from_millis(pause as u64);
            tokio::time::sleep(pause).await;
            self.transaction(pause).await?;
        }
        Ok(())
    }

    /// A transaction of the source, held open for a moment.
    async fn transaction(&mut self, held: Duration) -> Result<()> {
        let transaction = Transaction::draw(&mut self.changes, &mut self.tables, false);
        self.happen(transaction, held).await
    }

    async fn happen(&mut self, mut transaction: Transaction, held: Duration) -> Result<()> {
        let now = self.source.begin().await?;
        transaction.stamp(&self.tables, now, self.skew);
        self.source.run(&self.statements(&transaction)).await?;
        tokio::time::sleep(held).await;
        self.source.run("COMMIT").await?;
        self.committed(&transaction);
        Ok(())
    }

    fn statements(&self, transaction: &Transaction) -> String {
        transaction.statements(&self.tables, self.source.dialect(), |name| self.source.name(name))
    }

    fn committed(&mut self, transaction: &Transaction) {
        self.report.transactions += 1;
        for (index, edits) in transaction.by_table() {
            for edit in &edits {
                match edit {
                    Edit::Insert(_) => self.report.inserted += 1,
                    Edit::Update(..) => self.report.updated += 1,
                    Edit::Delete(_) => self.report.deleted += 1,
                }
            }
            self.tables[index].commit(&edits);
        }
    }

    /// A transaction that writes now and commits later: its times will be old by then.
    async fn leave_open(&mut self) -> Result<()> {
        // SQLite has one writer: another one would keep all others out.
        if self.open.is_some() || self.source.dialect() == Dialect::Sqlite {
            return Ok(());
        }
        let mut transaction = Transaction::draw(&mut self.changes, &mut self.tables, true);
        let now = self.aside.begin().await?;
        transaction.stamp(&self.tables, now, self.skew);
        self.aside.run(&self.statements(&transaction)).await?;
        self.open = Some(transaction);
        Ok(())
    }

    pub(super) async fn end_open(&mut self) -> Result<()> {
        if let Some(transaction) = self.open.take() {
            self.aside.run("COMMIT").await?;
            self.report.late_commits += 1;
            self.committed(&transaction);
            self.tables.iter_mut().for_each(|table| table.held.clear());
        }
        Ok(())
    }

    async fn reshape(&mut self) -> Result<()> {
        let dialect = self.source.dialect();
        let (index, reshape) = Reshape::draw(&mut self.changes, &mut self.tables, dialect);
        let table = &mut self.tables[index];
        self.source.run(&reshape.statement(&table.now, dialect, &self.source.name(table.spec.name))).await?;
        reshape.commit(table);
        self.report.reshaped += 1;
        self.report.count(reshape.name());
        Ok(())
    }

    /// The lake loses a table, and begins it anew: by a first read in many portions, with troubles of its own.
    async fn start_anew(&mut self) -> Result<()> {
        let index = self.troubles.below(SPECS.len());
        if matches!(SPECS[index].how, How::Stamped { .. }) {
            self.look().await?;
            self.lake.lake.drop_table(&TableId::new(&self.settings.schema, SPECS[index].name)).await?;
            self.followed[index].start_anew();
            self.report.count("lake table dropped");
        }
        Ok(())
    }

    /// Holds new snapshots against the states of the source.
    pub(super) async fn look(&mut self) -> Result<()> {
        for (followed, table) in self.followed.iter_mut().zip(&mut self.tables) {
            let id = TableId::new(&self.settings.schema, table.spec.name);
            let looked = followed.look(&self.lake, &id, table).await?;
            self.report.snapshots_verified += looked.snapshots;
            self.report.rows_verified += looked.rows;
            for wrong in looked.wrong {
                self.report.wrong.push(wrong);
            }
        }
        Ok(())
    }

    pub(super) fn wrong(&mut self, what: String) {
        if self.report.wrong.len() < MOST_WRONG {
            self.report.wrong.push(what);
        }
    }
}
