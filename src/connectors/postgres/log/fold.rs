//! From messages to changes: who is the key, what came before, what cannot be followed.
//!
//! A transaction that the lake has already is passed over: a slot may be behind the lake. A key that
//! changes is a delete of the old and an insert of the new one.

use super::super::discover::Relation;
use super::lsn::Lsn;
use super::pgoutput::{self, Message, Old, Tuple};
use super::snapshot::Snapshot;
use super::table::{Both, Broken, Described, Mapping, Wanted};
use crate::connectors::sql::Changes;
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
    /// Those that were committed from it on are the next pass's: the server hands out what ends behind a place
    /// as well.
    before: Lsn,
    /// So are those that this has seen.
    seen: Option<&'a Snapshot>,
    /// Where the wanted columns are, or why they cannot be found.
    mapping: Option<Result<Mapping, Broken>>,
    passing: bool,
    /// Whether the transaction under way is the next pass's.
    beyond: bool,
    /// When the transaction under way was committed.
    at: i64,
    /// When the first transaction was that changed something here: microseconds since 1970.
    pub(super) oldest: Option<i64>,
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
        before: Lsn,
        seen: Option<&'a Snapshot>,
        most_bytes: usize,
    ) -> Self {
        Self {
            table,
            after,
            before,
            seen,
            mapping: None,
            passing: false,
            beyond: false,
            at: 0,
            oldest: None,
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
            Message::Begin { commit, at, transaction } => {
                self.at = at;
                self.beyond = commit >= self.before;
                self.passing = self.beyond
                    || commit < self.after
                    || self.seen.is_some_and(|seen| seen.sees(transaction));
            }
            Message::Commit { end } if !self.beyond => self.end = Some(end),
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
                self.add(Op::Delete)?;
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
        self.add(Op::Upsert)?;
        Ok(None)
    }

    fn add(&mut self, op: Op) -> Result<()> {
        self.oldest.get_or_insert(self.at);
        self.changes.add(op, &self.key, &self.row)
    }
}

fn both<'a>(old: Old<'a>, text: Option<Old<'a>>) -> Both<'a> {
    Both { binary: old.tuple, text: text.map(|old: Old<'a>| -> Tuple<'a> { old.tuple }) }
}

fn unknown() -> Error {
    Error::new(ErrorKind::Corrupt, "the log has rows of a table that it has not described")
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::relation;
    use super::*;

    fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        std::iter::once(tag).chain(parts.concat()).collect()
    }

    /// Whether a transaction that was committed at a place is taken, and where it is known to end.
    fn took(after: u64, before: u64, commit: u64) -> (bool, Option<u64>) {
        let relation = relation(&[(1, "id", 23)]);
        let table =
            Following { before: Described::of(&relation, ""), relation, wanted: Vec::new(), key: Vec::new() };
        let mut fold = Fold::new(&table, Lsn(after), Lsn(before), None, 1 << 20);
        let begin = message(b'B', &[&commit.to_be_bytes(), &[0; 8], &[0; 4]]);
        assert_eq!(fold.take(&begin, None).unwrap(), None);
        let truncate = message(b'T', &[&1u32.to_be_bytes(), &[0], &7u32.to_be_bytes()]);
        let taken = fold.take(&truncate, None).unwrap().is_some();
        let end = message(b'C', &[&[0], &commit.to_be_bytes(), &(commit + 48).to_be_bytes(), &[0; 8]]);
        assert_eq!(fold.take(&end, None).unwrap(), None);
        (taken, fold.end.map(|Lsn(end)| end))
    }

    #[test]
    fn a_transaction_belongs_to_one_of_two_passes_by_where_its_commit_begins() {
        assert_eq!(took(100, 200, 99), (false, Some(147)), "the pass before had it");
        assert_eq!(took(100, 200, 100), (true, Some(148)));
        assert_eq!(
            took(100, 200, 199),
            (true, Some(247)),
            "the server hands it out, as it begins before the end"
        );
        assert_eq!(took(100, 200, 200), (false, None), "the next pass has it, and nothing may go beyond it");
        assert_eq!(took(200, 300, 200), (true, Some(248)));
    }
}
