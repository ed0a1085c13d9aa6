//! All comes to rest: nothing is written any more, and the three places must hold the same rows.

use super::lakeside::Rows;
use super::model::{State, refused};
use super::passes::Trouble;
use super::place::{Way, keeps_versions};
use super::values::Dialect;
use super::world::{MOST_WRONG, PATIENTLY, USUAL, World, open_target};
use crate::error::Result;
use crate::table::TableId;
use crate::target::{IS_CURRENT, MADE};

/// After this many tries something does not come to rest.
const TRIES: u64 = 3;

impl World<'_> {
    /// All is let come to rest: a clean run, and source, lake and target hold the same.
    pub(super) async fn rest(&mut self) -> Result<()> {
        self.end_open().await?;
        self.owner_widens().await?;
        self.report.settled += 1;
        for attempt in 1..=TRIES {
            let patiently = if self.way == Way::Log { &PATIENTLY[..] } else { &[] };
            let mut running = self.start(0, &[&["run"], patiently].concat(), &Trouble::None)?;
            running.wait().await?;
            self.ended(&mut running, false)?;
            self.look().await?;
            if !self.report.is_good() {
                return Ok(());
            }
            let wrong = self.compare().await?;
            if wrong.is_empty() {
                break;
            }
            // The server may not have noticed yet that a killed reader is gone.
            if attempt < TRIES && self.source.dialect() != Dialect::Sqlite {
                self.report.settled_late += u64::from(attempt == 1);
                tokio::time::sleep(USUAL).await;
                continue;
            }
            wrong.into_iter().for_each(|wrong| self.wrong(wrong));
            return Ok(());
        }
        if self.troubles.one_in(4) {
            self.lose_records().await?;
        }
        // Nobody writes now: what crashes have left may go.
        if self.troubles.one_in(3) {
            let verb = ["maintain", "--remove-orphans", "--orphan-age", "0s", "--force"];
            let mut running = self.start(0, &verb, &Trouble::None)?;
            running.wait().await?;
            self.ended(&mut running, false)?;
            self.look().await?;
            let wrong = self.compare().await?;
            wrong.into_iter().for_each(|wrong| self.wrong(format!("after orphans were removed: {wrong}")));
        }
        Ok(())
    }

    /// The target forgets what it shows. A repair finds that, and loads what the lake has.
    async fn lose_records(&mut self) -> Result<()> {
        self.report.count("records lost in the target");
        let target = open_target(&self.settings).await?;
        // Who made a table is not to be found out again: a table of somebody else's is never altered.
        let lost = format!("DELETE FROM {} WHERE stream <> '{MADE}'", target.name("frazil_applied"));
        target.run(&lost).await?;
        let mut running = self.start(0, &["state", "repair"], &Trouble::None)?;
        running.wait().await?;
        self.ended(&mut running, false)?;
        let wrong = self.compare().await?;
        wrong.into_iter().for_each(|wrong| self.wrong(format!("after a repair: {wrong}")));
        Ok(())
    }

    /// Where source, lake and target differ from the model.
    async fn compare(&self) -> Result<Vec<String>> {
        let target = open_target(&self.settings).await?;
        let mut wrong = Vec::new();
        for table in &self.tables {
            let name = table.spec.name;
            let key: Vec<usize> = (0..table.spec.key).collect();
            let names = || table.now.columns.iter().map(|column| column.name.clone()).collect();
            let mut held = Vec::new();
            let versions = keeps_versions(&self.settings.places, name);
            for (place, database) in [("source", &self.source), ("target", &target)] {
                let only = (versions && place == "target").then_some(IS_CURRENT);
                let rows = database.rows(&database.name(name), &table.now.columns, only).await;
                match rows {
                    Ok(rows) => held.push((place, Rows::new(names(), rows, &key))),
                    Err(error) => wrong.push(format!("{name}: the {place} cannot be read: {error}")),
                }
            }
            if let Some(found) = self.lake.lake.table(&TableId::new(&self.settings.schema, name)).await? {
                held.push(("lake", self.lake.read(&found, None, table).await?));
            } else {
                wrong.push(format!("{name}: the lake has no such table"));
            }
            if versions {
                let key: Vec<&str> =
                    table.spec.columns[..table.spec.key].iter().map(|(name, _)| *name).collect();
                let overlaps = target.overlaps(&target.name(name), &key).await?;
                if overlaps > 0 {
                    wrong.push(format!("{name}: {overlaps} versions in the target overlap"));
                }
            }
            let mut taken = State { columns: table.now.columns.clone(), rows: table.now.rows.clone() };
            taken.rows.retain(|_, row| refused(table.spec, row).is_none());
            let aside = table.now.rows.values().filter_map(|row| refused(table.spec, row));
            let mut aside: Vec<String> = aside.map(|id| format!("{{\"id\":{id}}}")).collect();
            aside.sort();
            let letters = self.lake.letters(&TableId::new(&self.settings.schema, name)).await?;
            if letters != aside {
                wrong.push(format!("{name}: the letters are of {letters:?}, not of {aside:?}"));
            }
            for (place, rows) in held {
                let differences = rows.differences(if place == "target" { &taken } else { &table.now });
                if !differences.is_empty() {
                    let shown = &differences[..differences.len().min(MOST_WRONG)];
                    wrong.push(format!(
                        "{name}: the {place} differs in {}: {}",
                        differences.len(),
                        shown.join("; ")
                    ));
                }
            }
        }
        Ok(wrong)
    }

    /// Takes the test's own tables away. Files of dropped tables stay in the lake, as they always do.
    pub(super) async fn clean_up(&mut self) -> Result<()> {
        if self.settings.keep {
            return Ok(());
        }
        if self.way != Way::Whole {
            let mut running = self.start(0, &["teardown", "--yes"], &Trouble::None)?;
            running.wait().await?;
            self.ended(&mut running, false)?;
        }
        for table in &self.tables {
            self.lake.lake.drop_table(&TableId::new(&self.settings.schema, table.spec.name)).await?;
        }
        self.source.drop_schema().await?;
        open_target(&self.settings).await?.drop_schema().await
    }
}
