//! The messages of `pgoutput`, the server's own plug-in for logical decoding, protocol version 1.
//!
//! ```text
//! B(egin) ─▶ R(elation) ─▶ I(nsert) U(pdate) D(elete) T(runcate) … ─▶ C(ommit)
//! ```
//!
//! Only transactions that were committed come, each whole, in the order of their commits. What is read
//! here lies where it came; a length is believed only as far as there are bytes.

use super::lsn::Lsn;
use crate::error::{Error, ErrorKind, Result};

/// Where the server's times begin, 2000-01-01, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// A transaction: the place of its commit record, when that was (microseconds since 1970), and the lower
    /// half of its number.
    Begin {
        commit: Lsn,
        at: i64,
        transaction: u32,
    },
    /// It is over; the next begins behind this place.
    Commit {
        end: Lsn,
    },
    /// What the rows of a table look like from here on.
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// Origins, types, messages of applications.
    Other,
}

/// The columns of a table, in the order of its tuples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) oid: u32,
    /// `d`efault, `n`othing, `f`ull, `i`ndex.
    pub(super) identity: u8,
    pub(super) columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// Whether old tuples have it.
    pub(super) in_identity: bool,
    pub(super) oid: u32,
    pub(super) modifier: i32,
}

/// A row as it was.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Old<'a> {
    /// Whether it has all columns, not only those of the replica identity.
    pub(super) whole: bool,
    pub(super) tuple: Tuple<'a>,
}

/// The values of a row, checked to be all there.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

/// One value.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Value<'a> {
    Null,
    /// Stored apart (TOAST) and not changed: the log does not have it.
    Unchanged,
    Binary(&'a [u8]),
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    pub(super) fn values(&self) -> impl Iterator<Item = Value<'a>> {
        let mut at = Reader(self.bytes);
        (0..self.columns).map(move |_| at.value().expect("tuples are read through before they are used"))
    }
}

/// Reads one message.
pub(super) fn read(bytes: &[u8]) -> Result<Message<'_>> {
    let mut at = Reader(bytes);
    let message = match at.byte()? {
        b'B' => {
            let commit = Lsn(at.long()?);
            let since_2000 = at.long()?.cast_signed();
            Message::Begin { commit, at: since_2000.saturating_add(EPOCH), transaction: at.int()? }
        }
        b'C' => {
            at.take(9)?;
            let end = Lsn(at.long()?);
            at.take(8)?;
            Message::Commit { end }
        }
        b'R' => Message::Relation(at.relation()?),
        b'I' => {
            let relation = at.int()?;
            at.expect(b'N')?;
            Message::Insert { relation, new: at.tuple()? }
        }
        b'U' => {
            let relation = at.int()?;
            let old = match at.0.first() {
                Some(b'K' | b'O') => Some(at.old()?),
                _ => None,
            };
            at.expect(b'N')?;
            Message::Update { relation, old, new: at.tuple()? }
        }
        b'D' => Message::Delete { relation: at.int()?, old: at.old()? },
        b'T' => {
            let count = at.int()?;
            at.take(1)?;
            let relations = (0..count).map(|_| at.int()).collect::<Result<_>>()?;
            Message::Truncate { relations }
        }
        b'O' | b'Y' | b'M' => return Ok(Message::Other),
        _ => return Err(Error::new(ErrorKind::Unsupported, "the log has a message that is not known")),
    };
    if at.0.is_empty() { Ok(message) } else { Err(corrupt("a message of the log is longer than it says")) }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or_else(|| corrupt("a message of the log is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) =
            self.0.split_first_chunk().ok_or_else(|| corrupt("a message of the log is cut short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.fixed::<1>().map(|[byte]| byte)
    }

    fn short(&mut self) -> Result<u16> {
        self.fixed().map(u16::from_be_bytes)
    }

    fn int(&mut self) -> Result<u32> {
        self.fixed().map(u32::from_be_bytes)
    }

    fn long(&mut self) -> Result<u64> {
        self.fixed().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Result<&'a str> {
        let len = self.0.iter().position(|byte| *byte == 0);
        let text = self.take(len.ok_or_else(|| corrupt("a name in the log has no end"))?)?;
        self.take(1)?;
        str::from_utf8(text).map_err(|_| corrupt("a name in the log is not UTF-8"))
    }

    fn expect(&mut self, tag: u8) -> Result<()> {
        if self.byte()? == tag { Ok(()) } else { Err(corrupt("a row in the log does not say which it is")) }
    }

    fn relation(&mut self) -> Result<Relation> {
        let oid = self.int()?;
        self.text()?;
        self.text()?;
        let identity = self.byte()?;
        let count = self.short()?;
        let columns = (0..count)
            .map(|_| {
                let flags = self.byte()?;
                let name = self.text()?.to_owned();
                let (oid, modifier) = (self.int()?, self.int()? as i32);
                Ok(Column { name, in_identity: flags & 1 != 0, oid, modifier })
            })
            .collect::<Result<_>>()?;
        Ok(Relation { oid, identity, columns })
    }

    fn old(&mut self) -> Result<Old<'a>> {
        let whole = match self.byte()? {
            b'O' => true,
            b'K' => false,
            _ => return Err(corrupt("a row in the log does not say which it is")),
        };
        Ok(Old { whole, tuple: self.tuple()? })
    }

    fn tuple(&mut self) -> Result<Tuple<'a>> {
        let columns = self.short()?;
        let bytes = self.0;
        for _ in 0..columns {
            self.value()?;
        }
        Ok(Tuple { columns, bytes: &bytes[..bytes.len() - self.0.len()] })
    }

    fn value(&mut self) -> Result<Value<'a>> {
        Ok(match self.byte()? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            tag @ (b'b' | b't') => {
                let len = self.int()? as usize;
                let value = self.take(len)?;
                if tag == b'b' { Value::Binary(value) } else { Value::Text(value) }
            }
            _ => return Err(corrupt("a value in the log does not say what it is")),
        })
    }
}

fn corrupt(message: &str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    /// As a server of version 15 sent them, for `t (id int primary key, n numeric, big text, i inet)`.
    const RECORDED: [&str; 9] = [
        "42000000000152b290000303d340fdca2d000002d7",
        "52000040007075626c69630074006400040169640000000017ffffffff006e00000006a4ffffffff006269670000000019ffffffff00690000000365ffffffff",
        "49000040004e0004620000000400000002620000000a000100000000000000026200000001626200000008020800040a000000",
        "55000040004e0004620000000400000001620000000a00010000000000000003756200000008022000040a000001",
        "55000040004b00046200000004000000016e6e6e4e0004620000000400000007620000000a00010000000000000003756200000008022000040a000001",
        "44000040004b00046200000004000000026e6e6e",
        "54000000010000004000",
        "4300000000000152b290000000000152b2c0000303d340fdca2d",
        "4f000000000152b29061006200",
    ];

    #[test]
    fn what_a_server_sent_is_understood() {
        let recorded: Vec<Vec<u8>> = RECORDED.iter().map(|hex| bytes(hex)).collect();
        let read: Vec<_> = recorded.iter().map(|message| read(message).unwrap()).collect();
        assert_eq!(
            read[0],
            Message::Begin { commit: Lsn(0x152b290), at: 1_795_315_593_488_941, transaction: 727 }
        );
        let Message::Relation(relation) = &read[1] else { panic!("{:?}", read[1]) };
        let columns: Vec<_> =
            relation.columns.iter().map(|c| (c.name.as_str(), c.in_identity, c.oid, c.modifier)).collect();
        assert_eq!(
            columns,
            [("id", true, 23, -1), ("n", false, 1700, -1), ("big", false, 25, -1), ("i", false, 869, -1)]
        );
        assert_eq!((relation.oid, relation.identity), (0x4000, b'd'));
        let Message::Insert { relation: 0x4000, new } = &read[2] else { panic!("{:?}", read[2]) };
        let values: Vec<_> = new.values().collect();
        assert_eq!((values[0], values[2]), (Value::Binary(&[0, 0, 0, 2]), Value::Binary(b"b")));
        let Message::Update { old: None, new, .. } = &read[3] else { panic!("{:?}", read[3]) };
        assert_eq!(new.values().nth(2), Some(Value::Unchanged));
        let Message::Update { old: Some(old), new, .. } = &read[4] else { panic!("{:?}", read[4]) };
        assert!(!old.whole);
        assert_eq!(old.tuple.values().next(), Some(Value::Binary(&[0, 0, 0, 1])));
        assert_eq!(new.values().next(), Some(Value::Binary(&[0, 0, 0, 7])));
        assert!(
            matches!(&read[5], Message::Delete { relation: 0x4000, old } if old.tuple.values().count() == 4)
        );
        assert_eq!(read[6], Message::Truncate { relations: vec![0x4000] });
        assert_eq!(read[7], Message::Commit { end: Lsn(0x152b2c0) });
        assert_eq!(read[8], Message::Other);
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_an_error() {
        for hex in &RECORDED[..8] {
            let mut message = bytes(hex);
            for len in 0..message.len() {
                assert!(read(&message[..len]).is_err(), "{hex} {len}");
            }
            message.push(0);
            assert!(read(&message).is_err(), "{hex}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..80), tag in 0usize..8) {
            let mut message = noise;
            if let Some(first) = message.first_mut() {
                *first = b"BCRIUDTX"[tag];
            }
            if let Ok(Message::Insert { new, .. }) = read(&message) {
                new.values().count();
            }
        }
    }
}
