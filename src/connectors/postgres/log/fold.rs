//! From messages to changes: who is the key, what came before, what cannot be followed.
//!
//! A transaction that the lake has already is passed over: a slot may be behind the lake. A key that
//! changes is a delete of the old and an insert of the new one.

use super::super::discover::Relation;
use super::changes::Changes;
use super::lsn::Lsn;
use super::pgoutput::{self, Message, Old, Tuple};
use super::snapshot::Snapshot;
use super::table::{Both, Broken, Described, Mapping, Wanted};
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};

/// What is followed, and from where.
pub(super) struct Following {
    pub(super) relation: Relation,
    /// As the position has it.
    pub(super) before: Described,
    pub(super) wanted: Vec<Wanted>,
    /// The key's columns among the wanted ones.
    pub(super) key: Vec<usize>,
}

/// Takes messages in the order in which they come.
pub(super) struct Fold<'a> {
    table: &'a Following,
    /// Transactions that were committed before it are in the lake.
    after: Lsn,
    /// So are those that this has seen.
    seen: Option<&'a Snapshot>,
    /// Where the wanted columns are, or why they cannot be found.
    mapping: Option<Result<Mapping, Broken>>,
    passing: bool,
    pub(super) changes: Changes,
    pub(super) messages: u64,
    /// Where the last transaction ended.
    pub(super) end: Option<Lsn>,
    key: Vec<u8>,
    row: Vec<u8>,
    old_key: Vec<u8>,
}

impl<'a> Fold<'a> {
    pub(super) fn new(
        table: &'a Following,
        after: Lsn,
        seen: Option<&'a Snapshot>,
        most_bytes: usize,
    ) -> Self {
        Self {
            table,
            after,
            seen,
            mapping: None,
            passing: false,
            changes: Changes::new(most_bytes),
            messages: 0,
            end: None,
            key: Vec::new(),
            row: Vec::new(),
            old_key: Vec::new(),
        }
    }

    /// Takes one message; the same as text where values are wanted so. What cannot be followed ends it.
    pub(super) fn take(&mut self, message: &[u8], text: Option<&[u8]>) -> Result<Option<Broken>> {
        self.messages += 1;
        let message = pgoutput::read(message)?;
        let ours = self.table.relation.oid;
        match message {
            Message::Begin { commit, transaction } => {
                self.passing = commit < self.after || self.seen.is_some_and(|seen| seen.sees(transaction));
            }
            Message::Commit { end } => self.end = Some(end),
            Message::Relation(relation) if relation.oid == ours => {
                let Following { before, relation: now, wanted, key } = self.table;
                self.mapping = Some(Mapping::of(&relation, before, now, wanted, key));
            }
            _ if self.passing => {}
            Message::Truncate { relations } if relations.contains(&ours) => {
                return Ok(Some(Broken("it was truncated".to_owned())));
            }
            Message::Insert { relation, new } if relation == ours => {
                let text = text.map(pgoutput::read).transpose()?;
                let text = match &text {
                    Some(Message::Insert { new, .. }) => Some(*new),
                    _ => None,
                };
                return self.upsert(Both { binary: new, text }, None);
            }
            Message::Update { relation, old, new } if relation == ours => {
                let text = text.map(pgoutput::read).transpose()?;
                let (old_text, text) = match &text {
                    Some(Message::Update { old, new, .. }) => (*old, Some(*new)),
                    _ => (None, None),
                };
                let old = old.map(|old| (old.whole, both(old, old_text)));
                return self.upsert(Both { binary: new, text }, old);
            }
            Message::Delete { relation, old } if relation == ours => {
                let text = text.map(pgoutput::read).transpose()?;
                let old_text = match &text {
                    Some(Message::Delete { old, .. }) => Some(*old),
                    _ => None,
                };
                let mapping = match self.mapping.as_ref().ok_or_else(unknown)? {
                    Ok(mapping) => mapping,
                    Err(broken) => return Ok(Some(broken.clone())),
                };
                let Following { wanted, key, .. } = self.table;
                mapping.key(wanted, key, both(old, old_text), &mut self.key, Some(&mut self.row))?;
                self.changes.add(Op::Delete, &self.key, &self.row)?;
            }
            _ => {}
        }
        Ok(None)
    }

    fn upsert(&mut self, new: Both<'_>, old: Option<(bool, Both<'_>)>) -> Result<Option<Broken>> {
        let mapping = match self.mapping.as_ref().ok_or_else(unknown)? {
            Ok(mapping) => mapping,
            Err(broken) => return Ok(Some(broken.clone())),
        };
        let Following { wanted, key, .. } = self.table;
        mapping.key(wanted, key, new, &mut self.key, None)?;
        let mut moved = false;
        if let Some((_, old)) = old {
            mapping.key(wanted, key, old, &mut self.old_key, Some(&mut self.row))?;
            moved = self.old_key != self.key;
            if moved {
                self.changes.add(Op::Delete, &self.old_key, &self.row)?;
            }
        }
        let whole = old.and_then(|(whole, old)| whole.then_some(old));
        let has_all = mapping.row(wanted, new, whole, &mut self.row)?;
        if moved && !has_all {
            return Ok(Some(Broken(
                "a row got another key, and the log does not have its large values".to_owned(),
            )));
        }
        self.changes.add(Op::Upsert, &self.key, &self.row)?;
        Ok(None)
    }
}

fn both<'a>(old: Old<'a>, text: Option<Old<'a>>) -> Both<'a> {
    Both { binary: old.tuple, text: text.map(|old: Old<'a>| -> Tuple<'a> { old.tuple }) }
}

fn unknown() -> Error {
    Error::new(ErrorKind::Corrupt, "the log has rows of a table that it has not described")
}
