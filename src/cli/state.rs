//! `state`: the positions of streams. Shown, with their past, checked, set, carried away and back.

use std::io::Read;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::{Global, Output, StreamsArgs};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use super::state_args::{ImportArgs, SetArgs, StateCommand};
use super::status::decoded;
use crate::config::{Config, did_you_mean};
use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::journal::{Deed, Journal, who};
use crate::lake::{Lake, LakeTable};
use crate::query::AsOf;
use crate::source::Severity;
use crate::sync::{self, Stream};

/// Summary entries of snapshots.
const WATERMARK: &str = "frazil.watermark";
const SET_BY: &str = "frazil.set-by";

/// Does what is asked of positions.
pub(super) async fn state(global: &Global, command: &StateCommand) -> Result<Exit> {
    match command {
        StateCommand::Show(args) => show(global, args).await,
        StateCommand::History(args) => history(global, args).await,
        StateCommand::Verify(args) => verify(global, args).await,
        StateCommand::Repair(args) => super::repair::repair(global, args).await,
        StateCommand::Set(args) => set(global, args).await,
        StateCommand::Export(args) => export(global, args).await,
        StateCommand::Import(args) => import(global, args).await,
    }
}

/// Prints each stream's position, decoded.
async fn show(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let lake = Lake::open(config.lake()).await?;
    for stream in &streams {
        let table = lake.table(&stream.lake_table).await?;
        let line = Line::of(stream, table.as_ref())?;
        if global.output == Output::Json {
            output::json(&line)?;
            continue;
        }
        let note = if line.unfinished { "  (a first read is under way)" } else { "" };
        output::line(format!("{}{note}", stream.name))?;
        let text = match line.position {
            Some(position) => serde_json::to_string_pretty(&position).expect("JSON is JSON"),
            None => "no position: the next run reads everything".to_owned(),
        };
        output::line(format!("  {}", text.replace('\n', "\n  ")))?;
    }
    Ok(Exit::Done)
}

/// The form of exported lines. Version 0 had no number and the same fields.
const FORMAT: u32 = 1;

/// A stream's position, as it is printed and read back.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// [`FORMAT`].
    #[serde(default)]
    format: u32,
    stream: String,
    lake_table: String,
    snapshot: Option<SnapshotId>,
    unfinished: bool,
    position: Option<Value>,
    /// The same to the letter: numbers in it may have more digits than a JSON reader keeps.
    watermark: Option<Watermark>,
}

impl Line {
    fn of(stream: &Stream, table: Option<&LakeTable>) -> Result<Self> {
        let position = table.map(LakeTable::position).transpose()?.flatten();
        Ok(Self {
            format: FORMAT,
            stream: stream.name.clone(),
            lake_table: stream.lake_table.to_string(),
            snapshot: table.and_then(LakeTable::current),
            unfinished: position.as_ref().is_some_and(|position| position.unfinished),
            position: position.as_ref().map(|position| decoded(position.watermark.as_str())),
            watermark: position.map(|position| position.watermark),
        })
    }
}

/// A move of a position, as the lake's snapshots tell it.
#[derive(Debug, Serialize)]
struct Step {
    stream: String,
    at: DateTime<Utc>,
    snapshot: SnapshotId,
    from: Option<Value>,
    to: Value,
    /// Who set it by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    set_by: Option<String>,
}

/// How each stream came to where it is, newest first.
async fn history(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let lake = Lake::open(config.lake()).await?;
    let mut steps = Vec::new();
    for stream in &streams {
        if let Some(table) = lake.table(&stream.lake_table).await? {
            steps.extend(steps_of(stream, &table));
        }
    }
    if global.output == Output::Json {
        steps.iter().try_for_each(output::json)?;
        return Ok(Exit::Done);
    }
    let row = |step: &Step| {
        let position = |position: &Option<Value>| position.as_ref().map(Value::to_string).unwrap_or_default();
        vec![
            step.stream.clone(),
            step.at.format("%Y-%m-%d %H:%M:%S").to_string(),
            step.snapshot.to_string(),
            step.set_by.clone().unwrap_or_default(),
            position(&step.from),
            step.to.to_string(),
        ]
    };
    let rows: Vec<_> = steps.iter().map(row).collect();
    output::table(&["stream", "at", "snapshot", "set by", "from", "to"], &rows)?;
    Ok(Exit::Done)
}

/// Along the line of ancestors: what was rolled back is no past of it.
fn steps_of(stream: &Stream, table: &LakeTable) -> Vec<Step> {
    let snapshots = table.snapshots();
    let find = |id: SnapshotId| snapshots.iter().find(|snapshot| snapshot.id == id);
    let line = std::iter::successors(table.current().and_then(find), |snapshot| find(snapshot.parent?));
    let positions: Vec<_> = line
        .take(snapshots.len())
        .filter_map(|snapshot| Some((snapshot, snapshot.summary.get(WATERMARK)?)))
        .collect();
    let before = positions.iter().skip(1).map(|(_, position)| Some(*position)).chain([None]);
    positions
        .iter()
        .zip(before)
        // A rewrite of files carries the position along.
        .filter(|((_, to), from)| Some(*to) != *from)
        .map(|((snapshot, to), from)| Step {
            stream: stream.name.clone(),
            at: snapshot.committed_at,
            snapshot: snapshot.id,
            from: from.map(|from| decoded(from)),
            to: decoded(to),
            set_by: snapshot.summary.get(SET_BY).cloned(),
        })
        .collect()
}

/// Asks source, lake and target whether each stream can go on from where it is.
async fn verify(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let (lake, budget) = (Lake::open(config.lake()).await?, args.engine.budget()?);
    let mut troubled = 0;
    for stream in &streams {
        let findings = match sync::verify(&lake, stream, budget).await {
            Ok(findings) => findings,
            Err(error) => vec![(&error).into()],
        };
        troubled += usize::from(findings.iter().any(|finding| finding.severity >= Severity::Warning));
        if global.output == Output::Json {
            output::json(&serde_json::json!({ "stream": stream.name, "findings": findings }))?;
            continue;
        }
        let good = findings.is_empty().then_some("  it can go on");
        output::line(format!("{}{}", stream.name, good.unwrap_or_default()))?;
        for finding in &findings {
            let severity = finding.severity.name();
            output::line(format!("  {severity}: {}", finding.message))?;
            if let Some(remedy) = &finding.remedy {
                output::line(format!("    {remedy}"))?;
            }
        }
    }
    Ok(match troubled {
        0 => Exit::Done,
        some if some < streams.len() => Exit::Partial,
        _ => Exit::Failed,
    })
}

/// Sets one stream's position.
async fn set(global: &Global, args: &SetArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let lake = Lake::open(config.lake()).await?;
    let stream = named(&streams, &args.stream)?;
    let to = match (&args.position, &args.as_of) {
        (Some(position), _) => watermark(position)?,
        (None, Some(as_of)) => earlier(&lake, stream, as_of).await?,
        (None, None) => return Err(Error::new(ErrorKind::Config, "no position is given")),
    };
    let mut hand = Hand { journal: journal(&config)?, lake, budget: args.streams.engine.budget()? };
    hand.set(global, stream, to).await?;
    output::say(
        "  note: a position that is later than the rows skips some, an earlier one reads some again (which \
         doubles them where mode is `append`)",
    );
    Ok(Exit::Done)
}

/// The position that a stream had at a snapshot, a time or a tag.
async fn earlier(lake: &Lake, stream: &Stream, as_of: &str) -> Result<Watermark> {
    let none = |message: &str| Error::new(ErrorKind::Config, message).with("stream", &stream.name);
    let table =
        lake.table(&stream.lake_table).await?.ok_or_else(|| none("the lake has no such table yet"))?;
    let at = as_of.parse::<AsOf>()?.resolve(&table)?;
    table.position_at(at).ok_or_else(|| none("the stream had no position then"))
}

/// Prints all positions, to be read back by `import`.
async fn export(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let lake = Lake::open(config.lake()).await?;
    for stream in &streams {
        let table = lake.table(&stream.lake_table).await?;
        output::json(&Line::of(stream, table.as_ref())?)?;
    }
    Ok(Exit::Done)
}

/// Sets the positions that `export` printed, where they are others now.
async fn import(global: &Global, args: &ImportArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let unreadable = |source: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Config, format!("the positions cannot be read: {source}"))
            .with("file", args.file.display())
            .hint("give what `frazil state export` printed; `-` is stdin")
    };
    let mut text = String::new();
    let read = match args.file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(drop),
        _ => std::fs::read_to_string(&args.file).map(|found| text = found),
    };
    read.map_err(|source| unreadable(&source))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str::<Line>);
    let lines: Vec<Line> = lines.collect::<Result<_, _>>().map_err(|source| unreadable(&source))?;
    if let Some(newer) = lines.iter().find(|line| line.format > FORMAT) {
        let message = format!("the positions have format {}, of a newer frazil", newer.format);
        return Err(Error::new(ErrorKind::Unsupported, message).with("file", args.file.display()).hint(
            format!("this one reads formats up to {FORMAT}: import them with the version that wrote them"),
        ));
    }
    // All or none of the names are known before any position moves.
    let wanted: Vec<(&Stream, Watermark)> = lines
        .iter()
        .filter_map(|line| Some((line, line.watermark.clone()?)))
        .map(|(line, to)| Ok((named(&streams, &line.stream)?, to)))
        .collect::<Result<_>>()?;
    let lake = Lake::open(config.lake()).await?;
    let mut hand = Hand { journal: journal(&config)?, lake, budget: args.streams.engine.budget()? };
    for (stream, to) in wanted {
        hand.set(global, stream, to).await?;
    }
    Ok(Exit::Done)
}

/// What sets positions and notes that it did.
struct Hand {
    journal: Journal,
    lake: Lake,
    budget: crate::memory::Budget,
}

impl Hand {
    async fn set(&mut self, global: &Global, stream: &Stream, to: Watermark) -> Result<()> {
        let table = self.lake.table(&stream.lake_table).await?;
        let from = table.as_ref().map(LakeTable::position).transpose()?.flatten();
        if from.is_some_and(|from| !from.unfinished && from.watermark == to) {
            return match global.output {
                Output::Json => Ok(()),
                _ => output::line(format!("{} is there already", stream.name)),
            };
        }
        let moved = sync::set_position(&self.lake, stream, self.budget, to, &who()).await?;
        self.journal.note(&Deed::now("set", &stream.name).moved(moved.from.as_ref(), Some(&moved.to)))?;
        let (from, to) = (moved.from.map(|from| decoded(from.as_str())), decoded(moved.to.as_str()));
        if global.output == Output::Json {
            return output::json(&serde_json::json!({
                "stream": stream.name, "snapshot": moved.snapshot, "from": from, "to": to,
            }));
        }
        output::line(format!("{}: snapshot {}", stream.name, moved.snapshot))?;
        output::line(format!("  from {}", from.map(|from| from.to_string()).unwrap_or_default()))?;
        output::line(format!("  to   {to}"))
    }
}

/// The journal of a configuration.
pub(super) fn journal(config: &Config) -> Result<Journal> {
    Journal::open(&Journal::place(&History::place(config.path())))
}

pub(super) fn named<'a>(streams: &'a [Stream], name: &str) -> Result<&'a Stream> {
    streams.iter().find(|stream| stream.name == name).ok_or_else(|| {
        let hint = did_you_mean(name, streams.iter().map(|stream| stream.name.as_str()));
        Error::new(ErrorKind::Config, "there is no such stream")
            .with("stream", name)
            .hint(hint.unwrap_or_else(|| "`frazil state show` shows them all".to_owned()))
    })
}

/// A position as somebody types it.
fn watermark(text: &str) -> Result<Watermark> {
    serde_json::from_str::<Value>(text).map_err(|source| {
        Error::new(ErrorKind::Config, format!("the position is not JSON: {source}"))
            .hint("write it as `frazil state export` prints it under `watermark`, in single quotes")
    })?;
    // To the letter: numbers in it may have more digits than a JSON reader keeps.
    Ok(Watermark::new(text))
}
