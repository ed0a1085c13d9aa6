//! `jobs`: what a running `frazil serve` does, and what it is asked to do.

use chrono::{TimeDelta, Utc};

use super::args::{Global, Output};
use super::output::{self, Exit};
use super::serve_args::{JobsArgs, JobsCommand};
use crate::config::nearest;
use crate::control::{Control, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;

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
    match command {
        JobsCommand::List => list(global, &server),
        JobsCommand::Pause(args) => {
            ask(&server, args, "paused", |stream| control.pause(stream, true, Utc::now()))
        }
        JobsCommand::Resume(args) => {
            ask(&server, args, "resumed", |stream| control.pause(stream, false, Utc::now()))
        }
        JobsCommand::Trigger(args) => {
            ask(&server, args, "triggered", |stream| control.trigger(stream, Utc::now()))
        }
    }
}

fn ask(server: &Server, args: &JobsArgs, done: &str, act: impl Fn(&str) -> Result<()>) -> Result<Exit> {
    let known = || server.states.iter().map(|state| state.stream.as_str());
    for stream in &args.streams {
        if !known().any(|name| name == stream) {
            let error = Error::new(ErrorKind::Config, "the server has no such stream").with("stream", stream);
            return Err(match nearest(stream, known()) {
                Some(name) => error.hint(format!("did you mean `{name}`?")),
                None => error.hint("`frazil jobs list` shows them all"),
            });
        }
    }
    for stream in &args.streams {
        act(stream)?;
        output::line(format!("{done} {stream}"))?;
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
