//! Sets right what [`troubles`](super::trouble) finds, or says why it does not.
//!
//! Nothing here makes rows up: a position is only ever put back to an earlier one, whose rows are read
//! again, and a target is loaded anew from the lake in one transaction.

use std::sync::Arc;

use serde::Serialize;

use super::trouble::{Trouble, earlier_position, troubles};
use super::{Context, Progress, Stream, load, set_position};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{LakeTable, TableMode};
use crate::source::Severity;

/// What became of one trouble.
#[derive(Debug, Clone, Serialize)]
pub struct Repaired {
    /// What was wrong.
    pub trouble: String,
    /// What was done about it, or would be.
    pub deed: Option<String>,
    /// Why nothing was done, and what to do instead.
    pub refused: Option<String>,
}

/// Repairs a stream; with `dry`, only says what would be done.
pub async fn repair(context: &Context, stream: &Stream, dry: bool, author: &str) -> Result<Vec<Repaired>> {
    let (table, troubles) = troubles(&context.lake, stream, context.budget).await?;
    let Some(mut table) = table else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for trouble in troubles {
        let finding = trouble.finding();
        if finding.severity < Severity::Warning {
            continue;
        }
        let outcome = match Plan::of(&trouble, &table, context, stream).await {
            Ok(plan) if dry => Ok(plan.in_words()),
            Ok(plan) => plan.carry_out(&mut table, context, stream, author).await,
            Err(error) => Err(error),
        };
        let (deed, refused) = match outcome {
            Ok(deed) => (Some(deed), None),
            Err(error) => (None, Some(in_words(&error))),
        };
        all.push(Repaired { trouble: finding.message, deed, refused });
    }
    Ok(all)
}

fn in_words(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// What is to be done.
enum Plan {
    SetBack(crate::delta::Watermark),
    ReadAll,
    Mirror,
    Load { anew: bool },
}

impl Plan {
    async fn of(trouble: &Trouble, table: &LakeTable, context: &Context, stream: &Stream) -> Result<Self> {
        match trouble {
            Trouble::Lost | Trouble::Unusable if table.mode() == TableMode::Append => {
                // Rows since then are there already, and would be there twice.
                Err(Error::new(
                    ErrorKind::Config,
                    "an append table takes each row once only: no earlier position is safe",
                )
                .hint(
                    "`frazil state set` to where its rows end, if you know; or write to a new `lake_table`",
                ))
            }
            Trouble::Lost | Trouble::Unusable => Ok(earlier_position(table, stream, context.budget)
                .await?
                .map_or(Self::ReadAll, Self::SetBack)),
            Trouble::Mirror => Ok(Self::Mirror),
            Trouble::NoRecord | Trouble::Expired => Ok(Self::Load { anew: true }),
            Trouble::Another | Trouble::RolledBack => Ok(Self::Load { anew: false }),
            Trouble::Unknown(error) => Err(Error::new(error.kind(), "it cannot be asked").hint("see above")),
            Trouble::NoTable | Trouble::FirstRead | Trouble::NotLoaded | Trouble::Halfway => {
                Err(Error::new(ErrorKind::Internal, "there is nothing to repair"))
            }
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::SetBack(_) => "the position goes back to the last one that the source can go on from; rows since then are read again",
            Self::ReadAll => "no earlier position is of use: the next run reads everything, and commits what differs",
            Self::Mirror => "the property says what the snapshot says",
            Self::Load { anew: true } => "the target is loaded anew, in one transaction",
            Self::Load { anew: false } => "the target is loaded",
        }
        .to_owned()
    }

    async fn carry_out(
        &self,
        table: &mut LakeTable,
        context: &Context,
        stream: &Stream,
        author: &str,
    ) -> Result<String> {
        match self {
            Self::SetBack(to) => {
                set_position(&context.lake, stream, context.budget, to.clone(), author).await?;
                table.reload().await?;
            }
            Self::ReadAll => {}
            Self::Mirror => table.mirror_position().await?,
            Self::Load { anew } => {
                let context = Context { full_refresh: *anew, ..context.clone() };
                load(&context, stream, &Arc::new(Progress::default())).await?;
            }
        }
        Ok(self.in_words())
    }
}
