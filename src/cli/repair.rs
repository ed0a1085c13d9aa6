//! `state repair`: sets right what `state verify` finds, stream by stream, and files that are damaged.

use super::args::{Global, Output};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use super::state_args::RepairArgs;
use crate::control::Control;
use crate::error::Result;
use crate::history::History;
use crate::journal::{Deed, Journal, who};
use crate::lake::Lake;
use crate::sync::{self, Context, Repaired, Stream};

/// Repairs, and says of each trouble what became of it.
pub(super) async fn repair(global: &Global, args: &RepairArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let lake = Lake::open(config.lake()).await?;
    let context = Context::new(lake, args.streams.engine.budget()?, *config.maintenance());
    let history = History::place(config.path());
    let mut journal = Journal::open(&Journal::place(&history))?;
    let mut refused = 0;
    for repaired in files(&context, &streams, &history, args.dry_run).await? {
        tell(global, None, &repaired)?;
    }
    for stream in &streams {
        let all = match sync::repair(&context, stream, args.dry_run, &who()).await {
            Ok(all) => all,
            Err(error) => vec![Repaired {
                trouble: error.to_string(),
                deed: None,
                refused: Some(error.hint_text().unwrap_or("nothing can be done here").to_owned()),
            }],
        };
        refused += usize::from(all.iter().any(|repaired| repaired.refused.is_some()));
        for repaired in &all {
            if let (Some(deed), false) = (&repaired.deed, args.dry_run) {
                journal
                    .note(&Deed::now("repair", &stream.name).moved(Some(&repaired.trouble), Some(deed)))?;
            }
            tell(global, Some(&stream.name), repaired)?;
        }
        if all.is_empty() && global.output != Output::Json {
            output::line(format!("{}  nothing to repair", stream.name))?;
        }
    }
    Ok(match refused {
        0 => Exit::Done,
        some if some < streams.len() => Exit::Partial,
        _ => Exit::Failed,
    })
}

fn tell(global: &Global, stream: Option<&str>, repaired: &Repaired) -> Result<()> {
    if global.output == Output::Json {
        let mut value = serde_json::to_value(repaired).expect("a report is JSON");
        value["stream"] = stream.into();
        return output::json(&value);
    }
    output::line(format!("{}  {}", stream.unwrap_or("here"), repaired.trouble))?;
    match (&repaired.deed, &repaired.refused) {
        (Some(deed), _) => output::line(format!("  {deed}")),
        (None, refused) => {
            output::line(format!("  not repaired: {}", refused.as_deref().unwrap_or_default()))
        }
    }
}

/// The files beside the configuration. A damaged one is put aside; the history is made again as far as the
/// lake's snapshots tell it.
async fn files(
    context: &Context,
    streams: &[Stream],
    place: &std::path::Path,
    dry: bool,
) -> Result<Vec<Repaired>> {
    let mut all = Vec::new();
    if place.exists() && !History::is_sound(place) {
        let mut passes = Vec::new();
        for stream in streams {
            if let Some(table) = context.lake.table(&stream.lake_table).await? {
                passes.extend(table.snapshots().into_iter().filter_map(|snapshot| {
                    let summary = |name: &str| snapshot.summary.get(name).cloned();
                    let count = |name: &str| summary(name).and_then(|text| text.parse().ok());
                    (summary("frazil.stream").as_deref() == Some(&stream.name)).then_some(())?;
                    Some(crate::history::Pass {
                        run: summary("frazil.run")?,
                        verb: "snapshot".to_owned(),
                        stream: stream.name.clone(),
                        started_at: snapshot.committed_at,
                        seconds: 0.0,
                        verdict: "done".to_owned(),
                        change: summary("frazil.change"),
                        rows_extracted: count("added-records"),
                        file_bytes: count("added-files-size"),
                        snapshot: Some(snapshot.id.0),
                        rows_upserted: None,
                        rows_deleted: None,
                        rows_rejected: None,
                        conflicts: None,
                        rows_late: None,
                        latency_seconds: None,
                        differences: None,
                        error_kind: None,
                        error: None,
                    })
                }));
            }
        }
        passes.sort_by_key(|pass| pass.started_at);
        if !dry {
            History::put_aside(place)?;
            let history = History::open(place)?;
            passes.iter().try_for_each(|pass| history.remember(pass))?;
        }
        all.push(Repaired {
            trouble: "the run history is damaged".to_owned(),
            deed: Some(format!(
                "the file is put aside, and a new one has the {} passes that the lake's snapshots tell of",
                passes.len()
            )),
            refused: None,
        });
    }
    let control = Control::place(place);
    if control.exists() && !History::is_sound(&control) {
        if !dry {
            History::put_aside(&control)?;
        }
        all.push(Repaired {
            trouble: "the file of pauses is damaged".to_owned(),
            deed: Some("it is put aside: nothing is paused here any more".to_owned()),
            refused: None,
        });
    }
    Ok(all)
}
