//! `jobs`: what a running `frazil serve` does, and what it is asked to do.

use chrono::{TimeDelta, Utc};

use super::args::{Global, Output};
use super::output::{self, Exit};
use super::serve_args::JobsCommand;
use crate::control::{Control, Server, Wish};
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::journal::{Deed, Journal};

/// A server says something every second or two; one that was silent for longer is gone.
const SILENCE: TimeDelta = TimeDelta::seconds(15);

/// Asks, or lists.
pub(super) fn jobs(global: &Global, command: &JobsCommand) -> Result<Exit> {
    let place = Control::place(&History::place(super::history::place(global).as_deref()));
    let server = if place.exists() { Control::open(&place)?.server()? } else { None };
    let Some(server) = server else {
        return Err(Error::new(ErrorKind::Config, "no `frazil serve` has ever run with this configuration")
            .with("file", place.display())
            .hint("start it, or say with `--config` whose jobs you mean"));
    };
    let control = Control::open(&place)?;
    let (wish, args) = match command {
        JobsCommand::List => return list(global, &server),
        JobsCommand::Pause(args) => (Wish::Pause, args),
        JobsCommand::Resume(args) => (Wish::Resume, args),
        JobsCommand::Trigger(args) => (Wish::Trigger, args),
    };
    let mut journal = Journal::open(&super::journal::place(global))?;
    for stream in &args.streams {
        let known = server.states.iter().map(|state| state.stream.as_str());
        control.ask(wish, stream, known, Utc::now())?;
        journal.note(&Deed::now(wish.name(), stream))?;
        output::line(format!("asked to {} {stream}", wish.name()))?;
    }
    if Utc::now() - server.seen_at > SILENCE {
        output::say("note: no server is running now; the next one will know");
    }
    Ok(Exit::Done)
}

fn list(global: &Global, server: &Server) -> Result<Exit> {
    let silent = Utc::now() - server.seen_at > SILENCE;
    if global.output == Output::Json {
        for state in &server.states {
            output::json(state)?;
        }
    } else {
        let time = |time: Option<chrono::DateTime<Utc>>| {
            time.map(|time| time.format("%Y-%m-%d %H:%M:%SZ").to_string()).unwrap_or_default()
        };
        let rows: Vec<Vec<String>> = server
            .states
            .iter()
            .map(|state| {
                let mut doing = state.state.name().to_owned();
                if let Some(until) = state.left_alone_until {
                    doing.push_str(&format!(", a connection rests until {}", time(Some(until))));
                }
                vec![state.stream.clone(), time(state.due), doing]
            })
            .collect();
        output::table(&["stream", "due", "doing"], &rows)?;
    }
    if silent {
        output::say(format!(
            "note: the server (process {}) has been silent since {}",
            server.process, server.seen_at
        ));
    }
    Ok(Exit::Done)
}
