//! Rows in the binlog: which columns an image of a row has, and where the bytes of each are.
//!
//! Values of other columns than the key's are stepped over, never read.

use super::cells::length;

/// What an event says of a table whose rows follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableMap<'a> {
    pub(super) id: u64,
    pub(super) database: &'a [u8],
    pub(super) name: &'a [u8],
    types: &'a [u8],
    /// What more the types say, as it stands in the event.
    metadata: &'a [u8],
}

/// A column's type, and what more there is to say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Typed {
    pub(super) code: u8,
    pub(super) metadata: u16,
}

/// What happened to the rows of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Insert,
    Update,
    Delete,
}

/// The rows of an event.
#[derive(Debug, PartialEq)]
pub(super) struct Images<'a> {
    pub(super) table: u64,
    pub(super) kind: Kind,
    /// Whether a statement ends with them.
    pub(super) ends_statement: bool,
    columns: usize,
    /// Which columns the image before a change has; of an insert the one after it.
    first: &'a [u8],
    /// Which columns the image after an update has.
    second: &'a [u8],
    pub(super) compressed: bool,
    /// One image after the other.
    pub(super) images: &'a [u8],
}

/// The flag of the last rows of a statement.
const ENDS_STATEMENT: u16 = 1;

impl<'a> TableMap<'a> {
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        let rest = &mut body.get(8..)?;
        let database = named(rest)?;
        let name = named(rest)?;
        let columns = usize::try_from(counted(rest)?).ok()?;
        let types = take(rest, columns)?;
        let length = usize::try_from(counted(rest)?).ok()?;
        Some(Self { id: table_id(body)?, database, name, types, metadata: take(rest, length)? })
    }

    /// Its columns; `None` where there is a type that nobody knows.
    pub(super) fn columns(&self) -> Option<Vec<Typed>> {
        let rest = &mut &*self.metadata;
        self.types
            .iter()
            .map(|code| {
                let metadata = match metadata_length(*code)? {
                    0 => 0,
                    1 => u16::from(take(rest, 1)?[0]),
                    _ => u16::from_le_bytes(*take(rest, 2)?.first_chunk()?),
                };
                Some(Typed { code: *code, metadata })
            })
            .collect()
    }
}

/// How many bytes say more of a type.
fn metadata_length(code: u8) -> Option<usize> {
    Some(match code {
        // Numbers, and times as servers of old kept them.
        1..=3 | 7..=14 | 0 => 0,
        // Their digits, or how many bytes their length has.
        4 | 5 | 17..=19 | 140 | 242 | 245 | 249..=252 | 255 => 1,
        15 | 16 | 141 | 246..=248 | 253 | 254 => 2,
        _ => return None,
    })
}

impl<'a> Images<'a> {
    pub(super) fn read(kind: Kind, newer: bool, compressed: bool, body: &'a [u8]) -> Option<Self> {
        let flags = u16::from_le_bytes(*body.get(6..8)?.first_chunk()?);
        let rest = &mut body.get(8..)?;
        if newer {
            let extra = usize::from(u16::from_le_bytes(*rest.first_chunk()?));
            take(rest, extra)?;
        }
        let columns = usize::try_from(counted(rest)?).ok()?;
        let bitmap = columns.div_ceil(8);
        let first = take(rest, bitmap)?;
        let second = if kind == Kind::Update { take(rest, bitmap)? } else { first };
        Some(Self {
            table: table_id(body)?,
            kind,
            ends_statement: flags & ENDS_STATEMENT != 0,
            columns,
            first,
            second,
            compressed,
            images: rest,
        })
    }

    /// Steps through the images of rows, in pairs for updates: which columns each has, and their bytes.
    /// `images` are those of the event, unpacked.
    pub(super) fn each<E>(
        &self,
        columns: &[Typed],
        images: &[u8],
        mut take: impl FnMut(&[Cell<'_>], Option<&[Cell<'_>]>) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        if columns.len() != self.columns {
            return None;
        }
        let rest = &mut &*images;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            image(columns, self.first, rest, &mut before)?;
            if self.kind == Kind::Update {
                image(columns, self.second, rest, &mut after)?;
            }
            if let Err(error) = take(&before, (self.kind == Kind::Update).then_some(&after)) {
                return Some(Err(error));
            }
        }
        Some(Ok(()))
    }
}

/// A column's value in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell<'a> {
    /// The image does not have the column.
    Missing,
    Null,
    Bytes(&'a [u8]),
}

/// Reads one image.
fn image<'a>(columns: &[Typed], has: &[u8], rest: &mut &'a [u8], cells: &mut Vec<Cell<'a>>) -> Option<()> {
    cells.clear();
    let count = (0..columns.len()).filter(|column| bit(has, *column)).count();
    let nulls = take(rest, count.div_ceil(8))?;
    let mut place = 0;
    for (at, column) in columns.iter().enumerate() {
        if !bit(has, at) {
            cells.push(Cell::Missing);
            continue;
        }
        let cell = match bit(nulls, place) {
            true => Cell::Null,
            false => Cell::Bytes(take(rest, length(*column, rest)?)?),
        };
        place += 1;
        cells.push(cell);
    }
    Some(())
}

fn bit(bits: &[u8], at: usize) -> bool {
    bits.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

/// The number that a table has in the statement under way.
pub(super) fn table_id(body: &[u8]) -> Option<u64> {
    let [a, b, c, d, e, f] = *body.first_chunk()?;
    Some(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
}

/// A name behind its length, and the zero behind it.
fn named<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(take(rest, 1)?[0]);
    let name = take(rest, length)?;
    take(rest, 1)?;
    Some(name)
}

/// A number of one to nine bytes.
fn counted(rest: &mut &[u8]) -> Option<u64> {
    let more = match take(rest, 1)?[0] {
        252 => 2,
        253 => 3,
        254 => 8,
        number @ ..=250 => return Some(number.into()),
        _ => return None,
    };
    Some(take(rest, more)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Takes bytes off the front.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, others) = rest.split_at_checked(count)?;
    *rest = others;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table of an `int`, a `varchar(300)` and a `tinyint`.
    fn map() -> Vec<u8> {
        let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0, 4];
        body.extend(b"shop\0\x01t\0\x03\x03\x0f\x01\x02\x2c\x01\x06");
        body
    }

    #[test]
    fn images_are_stepped_through() {
        let map = map();
        let table = TableMap::read(&map).unwrap();
        assert_eq!((table.id, table.database, table.name), (7, &b"shop"[..], &b"t"[..]));
        let columns = table.columns().unwrap();
        assert_eq!(columns[1], Typed { code: 15, metadata: 300 });

        // An update: all columns before it, two after it.
        let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0, 2, 0, 3, 0b111, 0b101];
        body.extend([0b010, 1, 0, 0, 0, 9]);
        body.extend([0b00, 2, 0, 0, 0, 8]);
        let rows = Images::read(Kind::Update, true, false, &body).unwrap();
        assert!(rows.ends_statement);
        let mut seen = Vec::new();
        let stepped = rows.each(&columns, rows.images, |before, after| {
            seen.push(format!("{before:?} {after:?}"));
            Ok::<(), ()>(())
        });
        assert_eq!(stepped, Some(Ok(())));
        assert_eq!(
            seen,
            ["[Bytes([1, 0, 0, 0]), Null, Bytes([9])] Some([Bytes([2, 0, 0, 0]), Missing, Bytes([8])])"]
        );
        // Cut off, or of a table with other columns.
        let short = &rows.images[..rows.images.len() - 1];
        assert_eq!(rows.each(&columns, short, |_, _| Ok::<(), ()>(())), None);
        assert_eq!(rows.each(&columns[..2], rows.images, |_, _| Ok::<(), ()>(())), None);
    }

    proptest! {
        #[test]
        fn no_event_makes_a_panic(kind in 0_u8..=255, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = super::super::event::read(kind, &body);
            if let Some(columns) = TableMap::read(&body).and_then(|table| table.columns())
                && let Some(images) = Images::read(Kind::Update, true, false, &body)
            {
                let _ = images.each(&columns, &body, |_, _| Ok::<(), ()>(()));
            }
        }
    }
}
