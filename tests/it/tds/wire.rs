//! Packets and tokens: what a TDS 7.4 server puts around its answers.

use std::io::{self, Read, Write};

use super::value::{Bytes, COLLATION, Type, Value, utf16};

/// Kinds of messages that a client sends.
pub(crate) const BATCH: u8 = 0x01;
pub(crate) const RPC: u8 = 0x03;
pub(crate) const ATTENTION: u8 = 0x06;
pub(crate) const BULK: u8 = 0x07;
pub(crate) const TRANSACTION: u8 = 0x0E;
pub(crate) const LOGIN: u8 = 0x10;
pub(crate) const PRELOGIN: u8 = 0x12;

/// What packets are before the login says otherwise.
pub(crate) const FIRST_PACKET: usize = 4096;

const HEADER: usize = 8;

/// Reads one message; `stop_after` ends it early, as a server that dies while it reads.
pub(crate) fn read(from: &mut impl Read, stop_after: Option<usize>) -> io::Result<(u8, Vec<u8>)> {
    let mut message = Vec::new();
    loop {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let start = message.len();
        message.resize(start + length.saturating_sub(HEADER), 0);
        from.read_exact(&mut message[start..])?;
        if stop_after.is_some_and(|limit| message.len() >= limit) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if header[1] & 1 == 1 {
            return Ok((header[0], message));
        }
    }
}

/// Sends an answer in packets; of a `cut` answer only its first bytes.
pub(crate) fn send(to: &mut impl Write, answer: &[u8], packet: usize, cut: Option<usize>) -> io::Result<()> {
    let body = packet - HEADER;
    let packets = answer.len().div_ceil(body).max(1);
    let mut bytes = Vec::with_capacity(answer.len() + packets * HEADER);
    for (number, part) in answer.chunks(body).enumerate() {
        bytes.extend([0x04, u8::from(number + 1 == packets)]);
        bytes.extend(((part.len() + HEADER) as u16).to_be_bytes());
        bytes.extend([0, 0, (number + 1) as u8, 0]);
        bytes.extend(part);
    }
    if let Some(cut) = cut {
        bytes.truncate(cut);
        to.write_all(&bytes)?;
        to.flush()?;
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    to.write_all(&bytes)?;
    to.flush()
}

/// The answer to a prelogin: this server has no encryption.
pub(crate) fn prelogin() -> Vec<u8> {
    vec![0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xFF, 16, 0, 0x10, 0, 0, 0, 2]
}

/// What a client says of itself when it logs in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Login {
    pub(crate) packet: usize,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) application: String,
    pub(crate) database: String,
    pub(crate) read_only: bool,
}

impl Login {
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let field = |at: usize| -> Option<&[u8]> {
            let offset = usize::from(u16::from_le_bytes(message.get(at..at + 2)?.try_into().ok()?));
            let units = usize::from(u16::from_le_bytes(message.get(at + 2..at + 4)?.try_into().ok()?));
            message.get(offset..offset + 2 * units)
        };
        let text = |at: usize| field(at).and_then(|bytes| Bytes(bytes).text(bytes.len() / 2));
        // Each byte has its halves exchanged and is then mixed with 0xA5.
        let password: Vec<u8> = field(44)?.iter().map(|byte| (byte ^ 0xA5).rotate_left(4)).collect();
        Some(Self {
            packet: match u32::from_le_bytes(message.get(8..12)?.try_into().ok()?) {
                0 => FIRST_PACKET,
                wanted => (wanted as usize).clamp(512, 32_767),
            },
            user: text(40)?,
            password: Bytes(&password).text(password.len() / 2)?,
            application: text(48)?,
            database: text(68)?,
            read_only: message.get(26)? & 0x20 != 0,
        })
    }
}

fn short_text(text: &str) -> Vec<u8> {
    let mut bytes = vec![(text.encode_utf16().count()) as u8];
    bytes.extend(utf16(text));
    bytes
}

fn token(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((body.len() as u16).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn changed(kind: u8, new: &[u8], old: &[u8]) -> Vec<u8> {
    token(0xE3, &[&[kind], new, old].concat())
}

/// The answer to a login that was let in.
pub(crate) fn welcome(login: &Login) -> Vec<u8> {
    let collation: Vec<u8> = [&[5], COLLATION.as_slice()].concat();
    let mut answer = changed(1, &short_text(&login.database), &short_text("master"));
    answer.extend(changed(7, &collation, &[0]));
    answer.extend(changed(4, &short_text(&login.packet.to_string()), &short_text("4096")));
    let mut program = vec![1, 0x74, 0, 0, 4];
    program.extend(short_text("a TDS responder for tests"));
    program.extend([16, 0, 0x10, 0]);
    answer.extend(token(0xAD, &program));
    answer
}

/// Sends the client elsewhere.
pub(crate) fn route(host: &str, port: u16) -> Vec<u8> {
    let mut target = vec![0];
    target.extend(port.to_le_bytes());
    target.extend((host.encode_utf16().count() as u16).to_le_bytes());
    target.extend(utf16(host));
    let mut new = (target.len() as u16).to_le_bytes().to_vec();
    new.extend(target);
    changed(20, &new, &[0, 0])
}

/// A transaction begins (8), is committed (9) or rolled back (10).
pub(crate) fn transaction(kind: u8, descriptor: u64) -> Vec<u8> {
    let id = [&[8], descriptor.to_le_bytes().as_slice()].concat();
    if kind == 8 { changed(kind, &id, &[0]) } else { changed(kind, &[0], &id) }
}

/// An error as the server tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) number: u32,
    pub(crate) state: u8,
    pub(crate) class: u8,
    pub(crate) message: String,
}

impl ServerError {
    pub(crate) fn new(number: u32, message: impl Into<String>) -> Self {
        // 20 and above end the connection.
        let class = match number {
            1205 => 13,
            18456 => 14,
            40197 | 40501 | 40613 => 20,
            _ => 16,
        };
        Self { number, state: 1, class, message: message.into() }
    }

    pub(crate) fn token(&self) -> Vec<u8> {
        let mut body = self.number.to_le_bytes().to_vec();
        body.extend([self.state, self.class]);
        body.extend((self.message.encode_utf16().count() as u16).to_le_bytes());
        body.extend(utf16(&self.message));
        body.extend(short_text("responder"));
        body.extend(short_text(""));
        body.extend(1u32.to_le_bytes());
        token(0xAA, &body)
    }
}

/// How a statement ended.
pub(crate) const DONE: u8 = 0xFD;
pub(crate) const DONE_PROC: u8 = 0xFE;
pub(crate) const DONE_IN_PROC: u8 = 0xFF;
/// What a `DONE` says: more answers follow, an error, a count, an attention.
pub(crate) const MORE: u16 = 0x01;
pub(crate) const FAILED: u16 = 0x02;
pub(crate) const COUNTED: u16 = 0x10;
pub(crate) const ATTENDED: u16 = 0x20;

pub(crate) fn done(kind: u8, status: u16, rows: u64) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(status.to_le_bytes());
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(rows.to_le_bytes());
    bytes
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) of: Type,
}

pub(crate) fn metadata(columns: &[Column]) -> Vec<u8> {
    let mut bytes = vec![0x81];
    bytes.extend((columns.len() as u16).to_le_bytes());
    for column in columns {
        // No user type; nullable and writable.
        bytes.extend([0, 0, 0, 0, 0x09, 0]);
        bytes.extend(column.of.info());
        bytes.extend(short_text(&column.name));
    }
    bytes
}

pub(crate) fn row(columns: &[Column], values: &[Value], out: &mut Vec<u8>) {
    out.push(0xD1);
    for (column, value) in columns.iter().zip(values) {
        column.of.write(value, out);
    }
}

/// A bulk load: its columns and rows; `None` when its bytes are not what they say.
pub(crate) fn bulk(message: &[u8]) -> Option<(Vec<Column>, Vec<Vec<Value>>)> {
    let mut bytes = Bytes(message);
    (bytes.number(1)? == 0x81).then_some(())?;
    let mut columns = Vec::new();
    for _ in 0..bytes.number(2)? {
        bytes.take(6)?;
        let of = bytes.type_info()?;
        let length = bytes.number(1)? as usize;
        columns.push((bytes.text(length)?, of));
    }
    let mut rows = Vec::new();
    loop {
        match bytes.number(1)? {
            0xD1 => {
                let row = columns.iter().map(|(_, of)| bytes.value(*of)).collect::<Option<Vec<_>>>()?;
                rows.push(row);
            }
            0xFD => break,
            _ => return None,
        }
    }
    let columns = columns.into_iter().map(|(name, (of, _))| Column { name, of }).collect();
    Some((columns, rows))
}

/// A call: the statement of `sp_executesql` and its parameters.
pub(crate) fn call(message: &[u8]) -> Option<(String, Vec<(String, Value)>)> {
    let mut bytes = Bytes(message);
    let headers = bytes.number(4)? as usize;
    bytes.take(headers - 4)?;
    if bytes.number(2)? != 0xFFFF {
        return None;
    }
    bytes.take(4)?; // which procedure, and flags
    let mut parameters = Vec::new();
    while !bytes.0.is_empty() {
        let length = bytes.number(1)? as usize;
        let name = bytes.text(length)?;
        bytes.take(1)?;
        let of = bytes.type_info()?;
        let is_null = of == (Type::Int, true) && message.len() >= bytes.0.len() && null_type(message, &bytes);
        let value = if is_null { Value::Null } else { bytes.value(of)? };
        parameters.push((name, value));
    }
    let mut parameters = parameters.into_iter();
    let Some((_, Value::Text(statement))) = parameters.next() else { return None };
    // The second one declares those that follow.
    Some((statement, parameters.skip(1).collect()))
}

/// Whether the type just read was that of an untyped NULL, which no value follows.
fn null_type(message: &[u8], rest: &Bytes<'_>) -> bool {
    message[message.len() - rest.0.len() - 1] == 0x1F
}
