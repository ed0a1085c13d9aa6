//! The events of MariaDB's log as MySQL has them.

/// The part of an event that all have.
const HEADER: usize = 19;
const CHECKSUM: usize = 4;

const QUERY: u8 = 2;
const ROTATE: u8 = 4;
const FORMAT: u8 = 15;
const XID: u8 = 16;
const HEARTBEAT: u8 = 27;
const GTID: u8 = 33;
const PREVIOUS_GTIDS: u8 = 35;
const PAYLOAD: u8 = 40;
const MARIADB_CHECKPOINT: u8 = 161;
const MARIADB_GTID: u8 = 162;
const MARIADB_GTID_LIST: u8 = 163;

/// A statement that is a transaction by itself.
const STANDALONE: u8 = 1;

/// Numbers, from the first to before the last of each pair.
type Ranges = Vec<(u64, u64)>;

/// Rewrites a log as it comes.
pub(super) struct Rewriter {
    /// Transactions that are left out.
    without: Ranges,
    skipping: bool,
    checksums: bool,
    /// The events of a transaction that is to be compressed.
    transaction: Option<Vec<Held>>,
}

/// An event that waits for the end of its transaction: kind, header, body.
type Held = (u8, Vec<u8>, Vec<u8>);

impl Rewriter {
    pub(super) fn all() -> Self {
        Self::without(Vec::new())
    }

    pub(super) fn without(without: Ranges) -> Self {
        Self { without, skipping: false, checksums: false, transaction: None }
    }

    /// What comes in the place of a packet.
    pub(super) fn rewritten(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        if packet.first() != Some(&0) || packet.len() < 1 + HEADER {
            return vec![packet.to_vec()];
        }
        self.event(&packet[1..]).into_iter().map(|event| [&[0], event.as_slice()].concat()).collect()
    }

    fn event(&mut self, event: &[u8]) -> Vec<Vec<u8>> {
        let kind = event[4];
        match kind {
            FORMAT => {
                self.checksums = event[event.len() - CHECKSUM - 1] == 1;
                return vec![event.to_vec()];
            }
            ROTATE => {
                self.skipping = false;
                return vec![event.to_vec()];
            }
            _ => {}
        }
        let end = event.len() - if self.checksums { CHECKSUM } else { 0 };
        let (header, body) = (&event[..HEADER], &event[HEADER..end]);
        if kind == MARIADB_GTID {
            return self.begin(header, body);
        }
        if self.skipping {
            return Vec::new();
        }
        let (kind, body) = match kind {
            MARIADB_GTID_LIST => (PREVIOUS_GTIDS, vec![0; 8]),
            MARIADB_CHECKPOINT => (HEARTBEAT, body[4..].to_vec()),
            // Rows, with the newer header.
            23..=25 => (kind + 7, [&body[..8], &[2, 0], &body[8..]].concat()),
            kind => (kind, body.to_vec()),
        };
        let Some(transaction) = &mut self.transaction else { return vec![self.made(header, kind, &body)] };
        transaction.push((kind, header.to_vec(), body));
        let body = &transaction.last().unwrap().2;
        // Not every transaction ends as one that is compressed: those that are prepared do not.
        let in_words =
            kind == QUERY && (body.windows(3).any(|word| word == b"XA ") || body.ends_with(b"COMMIT"));
        if kind != XID && !in_words {
            return Vec::new();
        }
        let events = self.transaction.take().unwrap();
        if in_words {
            return events.iter().map(|(kind, header, body)| self.made(header, *kind, body)).collect();
        }
        let inside: Vec<_> = events.iter().map(|(kind, header, body)| plain(header, *kind, body)).collect();
        vec![self.made(header, PAYLOAD, &payload(&inside.concat()))]
    }

    /// A transaction begins.
    fn begin(&mut self, header: &[u8], body: &[u8]) -> Vec<Vec<u8>> {
        let number = u64::from_le_bytes(*body.first_chunk().unwrap());
        self.skipping = self.without.iter().any(|(from, to)| (*from..*to).contains(&number));
        if self.skipping {
            return Vec::new();
        }
        let server: uuid::Uuid = super::SERVER.parse().unwrap();
        let mut gtid = vec![0];
        gtid.extend(server.as_bytes());
        gtid.extend(number.to_le_bytes());
        // Whom it depends on, by a logical clock; when it was committed.
        gtid.push(2);
        gtid.extend([0; 16]);
        gtid.extend([0; 7]);
        // Every other one is compressed.
        self.transaction = (body[12] & STANDALONE == 0 && number.is_multiple_of(2)).then(Vec::new);
        vec![self.made(header, GTID, &gtid)]
    }

    /// An event with another body.
    fn made(&self, header: &[u8], kind: u8, body: &[u8]) -> Vec<u8> {
        let length = HEADER + body.len() + if self.checksums { CHECKSUM } else { 0 };
        let mut event = header.to_vec();
        event[4] = kind;
        event[9..13].copy_from_slice(&(length as u32).to_le_bytes());
        event.extend(body);
        if self.checksums {
            event.extend(crc32fast::hash(&event).to_le_bytes());
        }
        event
    }
}

/// An event as it is inside of a compressed transaction: without a checksum, and at no place of the file.
fn plain(header: &[u8], kind: u8, body: &[u8]) -> Vec<u8> {
    let mut event = header.to_vec();
    event[4] = kind;
    event[9..13].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    event[13..17].fill(0xf0);
    event.extend(body);
    event
}

/// Fields of a compressed transaction: how it is compressed, its length before and after, itself.
fn payload(inside: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(inside, 3).unwrap();
    let number = |length: usize| [&[254][..], &(length as u64).to_le_bytes()].concat();
    [&[2, 1, 0][..], &[3, 9], &number(inside.len()), &[1, 9], &number(packed.len()), &[0], &packed].concat()
}

/// A request for a log: the replica's number, and the transactions that it has.
pub(super) fn wanted(request: &[u8]) -> Option<(u32, Ranges)> {
    let number = |at: usize| Some(u64::from_le_bytes(*request.get(at..)?.first_chunk()?));
    let replica = u32::from_le_bytes(*request.get(3..)?.first_chunk()?);
    let name = u32::from_le_bytes(*request.get(7..)?.first_chunk()?) as usize;
    let sets = 11 + name + 8 + 4;
    let mut ranges = Vec::new();
    // There is one server.
    if number(sets)? == 1 {
        let count = number(sets + 24)? as usize;
        for at in 0..count {
            let at = sets + 32 + at * 16;
            ranges.push((number(at)?, number(at + 8)?));
        }
    }
    Some((replica, ranges))
}

/// The first number that is in none of them.
pub(super) fn first_missing(ranges: &Ranges) -> u64 {
    ranges.iter().fold(1, |next, (from, to)| if *from <= next { next.max(*to) } else { next })
}
