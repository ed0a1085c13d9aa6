//! What happens to a row that somebody else changed in the target since we last wrote it.
//!
//! ```text
//! base    what we wrote: the lake at the snapshot that the target shows ─┐
//! source  what is to come: the lake at the next one                      ├─▶ decide, column by column
//! target  what is there                                                  ─┘
//! ```
//!
//! A merge of three sides, as of files: a column that only one side changed takes that side's value, and
//! only where both did there is a conflict, which a policy decides. Connectors say what differs, in their
//! database's own words; what follows from it is decided here, once for all of them. A deletion has no time
//! and no columns, so a row that stands against one is taken or left whole.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Who wins where source and target both changed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ConflictPolicy {
    /// The source: its value is written over the target's.
    #[default]
    SourceWins,
    /// The side that wrote last, by the column `last_write`.
    LastWriteWins,
    /// The target: its value stays.
    TargetWins,
    /// The target's value stays until somebody decides.
    Manual,
    /// The load stops, and nothing of it is applied.
    Error,
}

/// The policies of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConflictRules {
    /// Of columns that have none of their own, and of rows that one side deleted.
    pub default: ConflictPolicy,
    /// Of single columns.
    pub columns: BTreeMap<String, ConflictPolicy>,
    /// The column that says when a row was written, for [`ConflictPolicy::LastWriteWins`].
    pub last_write: Option<String>,
}

impl ConflictRules {
    /// Whether targets are written without looking at what others did there.
    pub fn are_blind(&self) -> bool {
        self.all().all(|policy| policy == ConflictPolicy::SourceWins)
    }

    /// Whether a row's time decides anything.
    pub fn need_last_write(&self) -> bool {
        self.all().any(|policy| policy == ConflictPolicy::LastWriteWins)
    }

    /// The policy of a column.
    pub fn of(&self, column: &str) -> ConflictPolicy {
        self.columns.get(column).copied().unwrap_or(self.default)
    }

    fn all(&self) -> impl Iterator<Item = ConflictPolicy> {
        self.columns.values().copied().chain([self.default])
    }
}

/// How the three sides of a row differ, as its target sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// Whether we wrote it before.
    pub base: bool,
    /// Whether the source has it.
    pub source: bool,
    /// Whether the target has it.
    pub target: bool,
    /// Whether the source's row was written at the same time or later.
    pub source_is_newer: bool,
    /// Its columns that are no key, in the order of the table.
    pub columns: Vec<Differs>,
}

/// How the three values of a column differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differs {
    /// The target's from what we wrote.
    pub target_changed: bool,
    /// The source's from what we wrote.
    pub source_changed: bool,
    /// The target's from the source's.
    pub apart: bool,
}

impl Met {
    /// Reads what the statements of targets say: four marks of the row, then three of
    /// each column, each `0` or `1`.
    pub fn parse(marks: &str) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::Internal, "a target says in other words what differs");
        let marks = marks.bytes().map(|mark| match mark {
            b'0' => Ok(false),
            b'1' => Ok(true),
            _ => Err(wrong()),
        });
        let marks: Vec<bool> = marks.collect::<Result<_>>()?;
        let (row, columns) = marks.split_at_checked(4).ok_or_else(wrong)?;
        let [base, source, target, source_is_newer] = row.try_into().map_err(|_| wrong())?;
        let column = |marks: &[bool]| {
            let [target_changed, source_changed, apart] = marks.try_into().map_err(|_| wrong())?;
            // Without a base, both sides brought what they have.
            Ok(Differs {
                target_changed: target_changed || !base,
                source_changed: source_changed || !base,
                apart,
            })
        };
        let columns = columns.chunks(3).map(column).collect::<Result<_>>()?;
        Ok(Self { base, source, target, source_is_newer, columns })
    }
}

/// What is to be done with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The source's change is applied, as if nobody else were there.
    Take,
    /// The target's row stays as it is.
    Leave,
    /// The source's values are written, but for these columns.
    Mix(Vec<bool>),
}

/// What kind of change of the source met one of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictKind {
    /// Both have a new row with this key.
    Insert,
    /// The source changed a row that the target changed or deleted.
    Update,
    /// The source deleted a row that the target changed.
    Delete,
}

impl ConflictKind {
    /// As the table of conflicts says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// How a conflict ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// With the source's value.
    Source,
    /// With the target's value.
    Target,
    /// Not yet: the target's value is there until somebody decides.
    Open,
    /// It stopped the load.
    Error,
}

impl Resolution {
    /// As the table of conflicts says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Open => "open",
            Self::Error => "error",
        }
    }
}

/// A conflict of a row: its kind, and how each column of it ended, by its place among [`Met::columns`].
pub type Clash = (ConflictKind, Vec<(usize, Resolution)>);

/// Decides what becomes of a row that others may have touched. `policies` are those of [`Met::columns`].
pub fn decide(policies: &[ConflictPolicy], default: ConflictPolicy, met: &Met) -> (Outcome, Option<Clash>) {
    match (met.base, met.source, met.target) {
        (base, true, true) => {
            by_column(if base { ConflictKind::Update } else { ConflictKind::Insert }, policies, met)
        }
        (true, true, false) => {
            let changed = |differs: &Differs| differs.source_changed;
            as_a_whole(ConflictKind::Update, policies, default, met, changed, Resolution::Source)
        }
        (true, false, true) => {
            let changed = |differs: &Differs| differs.target_changed;
            match met.columns.iter().any(changed) {
                true => as_a_whole(ConflictKind::Delete, policies, default, met, changed, Resolution::Target),
                false => (Outcome::Take, None),
            }
        }
        // Nobody else was there, or only somebody else.
        (false, true, false) => (Outcome::Take, None),
        (_, false, _) => (Outcome::Leave, None),
    }
}

fn by_column(kind: ConflictKind, policies: &[ConflictPolicy], met: &Met) -> (Outcome, Option<Clash>) {
    let (mut kept, mut fields, mut written) = (vec![false; met.columns.len()], Vec::new(), false);
    for (place, (differs, policy)) in met.columns.iter().zip(policies).enumerate() {
        if !differs.apart {
            continue;
        }
        let resolution = match policy {
            _ if !differs.target_changed => None,
            // It writes over what only the target changed, too: that is lost, and so it is told.
            ConflictPolicy::SourceWins => Some(Resolution::Source),
            _ if !differs.source_changed => {
                kept[place] = true;
                None
            }
            ConflictPolicy::LastWriteWins if met.source_is_newer => Some(Resolution::Source),
            ConflictPolicy::LastWriteWins | ConflictPolicy::TargetWins => Some(Resolution::Target),
            ConflictPolicy::Manual => Some(Resolution::Open),
            ConflictPolicy::Error => Some(Resolution::Error),
        };
        kept[place] |= resolution.is_some_and(|resolution| resolution != Resolution::Source);
        written |= !kept[place];
        fields.extend(resolution.map(|resolution| (place, resolution)));
    }
    let outcome = match (written, kept.contains(&true)) {
        (_, false) => Outcome::Take,
        (false, true) => Outcome::Leave,
        (true, true) => Outcome::Mix(kept),
    };
    (outcome, (!fields.is_empty()).then_some((kind, fields)))
}

/// One side deleted the row: what the other changed decides, by the most careful of its policies.
/// `with_time` is the side that has a row, and so a time.
fn as_a_whole(
    kind: ConflictKind,
    policies: &[ConflictPolicy],
    default: ConflictPolicy,
    met: &Met,
    changed: impl Fn(&Differs) -> bool,
    with_time: Resolution,
) -> (Outcome, Option<Clash>) {
    let places: Vec<usize> = met
        .columns
        .iter()
        .enumerate()
        .filter(|(_, differs)| changed(differs))
        .map(|(place, _)| place)
        .collect();
    let policy = places.iter().map(|place| policies[*place]).max().unwrap_or(default);
    if places.is_empty() && policy != ConflictPolicy::SourceWins {
        return (Outcome::Leave, None);
    }
    let resolution = match policy {
        ConflictPolicy::SourceWins => Resolution::Source,
        ConflictPolicy::LastWriteWins => with_time,
        ConflictPolicy::TargetWins => Resolution::Target,
        ConflictPolicy::Manual => Resolution::Open,
        ConflictPolicy::Error => Resolution::Error,
    };
    let outcome = if resolution == Resolution::Source { Outcome::Take } else { Outcome::Leave };
    let fields = places.into_iter().map(|place| (place, resolution));
    (outcome, Some((kind, fields.collect())))
}

/// A conflict that a load found, with its values as JSON objects in the target's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundConflict {
    /// What met.
    pub kind: ConflictKind,
    /// The key's columns.
    pub key: String,
    /// The columns in question, and how each ended; none where the row has no columns but its key.
    pub fields: Vec<(String, Resolution)>,
    /// What we wrote last.
    pub base: Option<String>,
    /// What the source has; `None`: it deleted the row.
    pub source: Option<String>,
    /// What the target has; `None`: it deleted the row.
    pub target: Option<String>,
}

/// Says of a load what is to be done about conflicts, and takes those that are found.
#[async_trait]
pub trait Conflicts: Send + Sync {
    /// The policies.
    fn rules(&self) -> &ConflictRules;

    /// Takes conflicts that were found. An error ends the load.
    fn found(&self, conflicts: Vec<FoundConflict>) -> Result<()>;

    /// Called once by every load, within the transaction that changes the table and before its commit, after
    /// all conflicts were found and also when there are none. They are durable when it returns; an error ends
    /// the load.
    async fn keep(&self) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConflictPolicy::*;

    /// `base source target newer`, then a column each: what target and source hold where base holds `a`.
    fn check(policies: &[ConflictPolicy], row: &str, columns: &[(&str, &str)], expected: &str) {
        let row: Vec<bool> = row.bytes().map(|mark| mark == b'1').collect();
        let differs = |(target, source): &(&str, &str)| Differs {
            target_changed: *target != "a" || !row[0],
            source_changed: *source != "a" || !row[0],
            apart: target != source,
        };
        let met = Met {
            base: row[0],
            source: row[1],
            target: row[2],
            source_is_newer: row[3],
            columns: columns.iter().map(differs).collect(),
        };
        let (outcome, clash) = decide(policies, policies[0], &met);
        let outcome = match outcome {
            Outcome::Take => "take".to_owned(),
            Outcome::Leave => "leave".to_owned(),
            Outcome::Mix(kept) => {
                format!("keep {}", kept.iter().map(|kept| if *kept { '1' } else { '0' }).collect::<String>())
            }
        };
        let clash = clash.map(|(kind, fields)| {
            let fields: Vec<_> =
                fields.iter().map(|(place, resolution)| format!("{place}:{}", resolution.name())).collect();
            format!(", {} {}", kind.name(), fields.join(" "))
        });
        assert_eq!(outcome + &clash.unwrap_or_default(), expected, "{policies:?} {row:?} {columns:?}");
    }

    #[test]
    fn what_one_side_changed_is_no_conflict() {
        for policy in [TargetWins, LastWriteWins, Manual, Error] {
            check(&[policy], "1110", &[("a", "s")], "take");
            check(&[policy], "1110", &[("t", "a")], "leave");
            check(&[policy; 2], "1110", &[("t", "a"), ("a", "s")], "keep 10");
            check(&[policy], "1110", &[("x", "x")], "take");
        }
        check(&[SourceWins], "1110", &[("t", "a")], "take, update 0:source");
    }

    #[test]
    fn what_both_changed_is_decided() {
        let both = [("t", "s")];
        check(&[SourceWins], "1110", &both, "take, update 0:source");
        check(&[TargetWins], "1110", &both, "leave, update 0:target");
        check(&[LastWriteWins], "1110", &both, "leave, update 0:target");
        check(&[LastWriteWins], "1111", &both, "take, update 0:source");
        check(&[Manual], "1110", &both, "leave, update 0:open");
        check(&[Error], "1110", &both, "leave, update 0:error");
        check(&[Manual], "0110", &both, "leave, insert 0:open");
        check(&[Manual], "0110", &[("x", "x")], "take");
        let two = [("t", "s"), ("t", "s")];
        check(&[SourceWins, Manual], "1110", &two, "keep 01, update 0:source 1:open");
    }

    #[test]
    fn a_deletion_stands_against_a_row() {
        // The source deleted it.
        check(&[Manual], "1010", &[("a", "")], "take");
        for (policy, expected) in [
            (SourceWins, "take, delete 0:source"),
            (LastWriteWins, "leave, delete 0:target"),
            (TargetWins, "leave, delete 0:target"),
            (Manual, "leave, delete 0:open"),
            (Error, "leave, delete 0:error"),
        ] {
            check(&[policy], "1010", &[("t", "")], expected);
        }
        // The most careful policy of the columns that were changed.
        check(&[SourceWins, Manual], "1010", &[("t", ""), ("a", "")], "take, delete 0:source");
        check(&[SourceWins, Manual], "1010", &[("t", ""), ("t", "")], "leave, delete 0:open 1:open");
        // The target deleted it.
        for (policy, expected) in [
            (SourceWins, "take, update 0:source"),
            (LastWriteWins, "take, update 0:source"),
            (TargetWins, "leave, update 0:target"),
            (Manual, "leave, update 0:open"),
            (Error, "leave, update 0:error"),
        ] {
            check(&[policy], "1100", &[("", "s")], expected);
        }
        check(&[TargetWins], "1100", &[("", "a")], "leave");
        check(&[SourceWins], "1100", &[("", "a")], "take, update ");
        // Never ours.
        check(&[SourceWins], "0010", &[("t", "")], "leave");
    }

    #[test]
    fn marks_are_read() {
        let met = Met::parse("0110000001").unwrap();
        assert!(!met.base && met.source && met.target && !met.source_is_newer);
        assert_eq!(met.columns[0], Differs { target_changed: true, source_changed: true, apart: false });
        assert!(met.columns[1].apart);
        for wrong in ["", "01", "11111", "111x"] {
            assert!(Met::parse(wrong).is_err(), "{wrong}");
        }
    }
}
