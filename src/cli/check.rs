//! `check`: connects to everything and says what a run would do, and what is in its way.

use chrono::Utc;
use serde::Serialize;

use super::args::{Global, Output, StreamsArgs};
use super::groups;
use super::inspect::{InexactColumn, Inspection, inspect};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use crate::config::units::show_rows;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::memory::Budget;
use crate::source::{Finding, Severity};
use crate::sync::Stream;

/// What there is to say of one stream.
#[derive(Debug, Serialize)]
struct StreamCheck {
    stream: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    findings: Vec<Finding>,
    columns: Vec<InexactColumn>,
    #[serde(skip)]
    errors: Vec<ErrorKind>,
}

/// Looks at the lake and at every stream; nothing stops at the first problem.
pub(super) async fn check(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let budget = args.engine.budget()?;
    let lake = Lake::open(config.lake()).await?;
    let mut errors = Vec::new();
    let written = lake.probe(config.lake()).await;
    say_lake(global, &config.lake().warehouse, written.as_ref().err())?;
    errors.extend(written.err().map(|error| error.kind()));

    let width = streams.iter().map(|stream| stream.name.chars().count()).max().unwrap_or_default();
    for stream in &streams {
        let checked = check_stream(stream, &lake, budget).await;
        match global.output {
            Output::Json => output::json(&checked)?,
            _ => say_stream(&checked, width, global.verbose)?,
        }
        errors.extend(checked.errors);
    }
    match groups::look(&streams, &lake, budget, Utc::now()).await {
        Ok(groups) => groups.iter().try_for_each(|group| group.say_checked(global, width))?,
        Err(error) => {
            output::say_error(&error, global.verbose);
            errors.push(error.kind());
        }
    }
    Ok(match errors.as_slice() {
        [] => Exit::Done,
        all if all.iter().all(|kind| *kind == ErrorKind::Config) => Exit::Usage,
        _ => Exit::Failed,
    })
}

async fn check_stream(stream: &Stream, lake: &Lake, budget: Budget) -> StreamCheck {
    let mut checked = StreamCheck {
        stream: stream.name.clone(),
        ok: true,
        mode: None,
        change: None,
        rows: None,
        target: stream.target.as_ref().map(|to| format!("{} {}", to.connection.name(), to.table)),
        findings: Vec::new(),
        columns: Vec::new(),
        errors: Vec::new(),
    };
    match inspect(stream, lake, budget).await {
        Ok(inspection) => fill(&mut checked, stream, &inspection).await,
        Err(error) => checked.fail(&error),
    }
    for finding in &checked.findings {
        if finding.severity == Severity::Error && checked.errors.is_empty() {
            checked.errors.push(ErrorKind::Permission);
        }
    }
    checked.ok = checked.errors.is_empty();
    checked.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    checked
}

async fn fill(checked: &mut StreamCheck, stream: &Stream, inspection: &Inspection) {
    checked.mode = Some(inspection.mode());
    checked.change = Some(inspection.change());
    checked.rows = inspection.table.rows;
    checked.columns = inspection.inexact(stream);
    // Sources may say of a column what its description says already.
    let said =
        |finding: &&Finding| checked.columns.iter().any(|column| finding.message.ends_with(&column.note));
    let findings: Vec<_> =
        inspection.source_findings.iter().filter(|finding| !said(finding)).cloned().collect();
    checked.findings.extend(findings);
    let steps = inspection.evolution.iter().flat_map(|evolution| &evolution.steps);
    let notes = inspection.plan.notes.iter().chain(steps).cloned();
    checked.findings.extend(notes.map(|message| Finding { severity: Severity::Note, message, remedy: None }));
    match inspection.target_findings(stream).await {
        Ok(findings) => checked.findings.extend(findings),
        Err(error) => checked.fail(&error),
    }
}

impl StreamCheck {
    fn fail(&mut self, error: &Error) {
        self.errors.push(error.kind());
        self.findings.push(Finding {
            severity: Severity::Error,
            message: error.to_string(),
            remedy: error.hint_text().map(str::to_owned),
        });
    }
}

fn say_lake(global: &Global, warehouse: &str, error: Option<&Error>) -> Result<()> {
    if global.output == Output::Json {
        return output::json(&serde_json::json!({
            "lake": warehouse, "ok": error.is_none(), "error": error.map(ToString::to_string),
        }));
    }
    match error {
        None => output::line(format!("ok      lake {warehouse}: can be written")),
        Some(error) => {
            output::line(format!("failed  lake {warehouse}"))?;
            say_finding("error", &error.to_string(), error.hint_text())
        }
    }
}

fn say_stream(checked: &StreamCheck, width: usize, verbose: bool) -> Result<()> {
    let verdict = if checked.ok { "ok" } else { "failed" };
    let mut does: Vec<String> = checked.mode.iter().chain(&checked.change).cloned().collect();
    does.extend(checked.rows.map(|rows| format!("about {}", show_rows(rows))));
    does.extend(checked.target.iter().map(|target| format!("to {target}")));
    output::line(format!("{verdict:<6}  {:<width$}  {}", checked.stream, does.join(", ")))?;
    for finding in &checked.findings {
        let severity = finding.severity.name();
        say_finding(severity, &finding.message, finding.remedy.as_deref())?;
    }
    for column in &checked.columns {
        // What arrives without loss, if in another type, is for those who ask.
        if column.severity > Severity::Note || verbose {
            say_finding(
                "column",
                &format!("{} {}: {}", column.column, column.source_type, column.note),
                None,
            )?;
        }
    }
    let hidden = checked.columns.iter().filter(|column| column.severity == Severity::Note).count();
    if hidden > 0 && !verbose {
        say_finding(
            "column",
            &format!("{hidden} travel without loss in another type (`-v` lists them)"),
            None,
        )?;
    }
    Ok(())
}

fn say_finding(severity: &str, message: &str, remedy: Option<&str>) -> Result<()> {
    output::line(format!("        {severity}: {message}"))?;
    match remedy {
        Some(remedy) => output::line(format!("          {}", remedy.replace('\n', "\n          "))),
        None => Ok(()),
    }
}
