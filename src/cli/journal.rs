//! `journal`: who changed state by hand, newest first.

use super::args::{Global, Output};
use super::output::{self, Exit};
use super::state_args::JournalArgs;
use crate::error::Result;
use crate::history::History;
use crate::journal::{Deed, Journal};

/// Prints past deeds.
pub(super) fn journal(global: &Global, args: &JournalArgs) -> Result<Exit> {
    let (deeds, damaged) = Journal::deeds(&place(global), args.since, args.limit)?;
    if damaged > 0 {
        output::say(format!("warning: {damaged} lines of the journal cannot be read"));
    }
    if global.output == Output::Json {
        deeds.iter().try_for_each(output::json)?;
        return Ok(Exit::Done);
    }
    let row = |deed: &Deed| {
        let at = deed.at.format("%Y-%m-%d %H:%M:%S").to_string();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        vec![at, deed.who.clone(), deed.deed.clone(), deed.subject.clone(), text(&deed.from), text(&deed.to)]
    };
    output::table(
        &["at", "who", "deed", "subject", "from", "to"],
        &deeds.iter().map(row).collect::<Vec<_>>(),
    )?;
    Ok(Exit::Done)
}

/// The file of the configuration that is meant.
pub(super) fn place(global: &Global) -> std::path::PathBuf {
    Journal::place(&History::place(super::history::place(global).as_deref()))
}
