//! Fingerprints that do not fit the memory: on the local disk, divided into shares that do.
//!
//! Equal rows have equal fingerprints and so fall to the same share: share by share, one side is
//! held in memory and the other streams past it. The files have no names, so that nothing is left of
//! them however the program ends.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};

use roaring::RoaringTreemap;

use super::known::{Entry, Known};
use crate::error::{Error, ErrorKind, Result};

/// Bytes that the buffers of all shares of one side take together.
const BUFFERS: usize = 4 << 20;
/// The smallest buffer that spares system calls.
const SMALLEST_BUFFER: usize = 4 << 10;
/// Beyond this many shares a process may run out of open files.
pub(super) const MOST: usize = 256;

/// The fingerprints of one side.
pub(super) struct Shares {
    files: Vec<BufWriter<File>>,
}

impl Shares {
    /// No fingerprints yet, for so many shares.
    pub(super) fn new(of: usize) -> Result<Self> {
        let buffer = (BUFFERS / of).max(SMALLEST_BUFFER);
        let open = |_| Ok(BufWriter::with_capacity(buffer, tempfile::tempfile()?));
        Ok(Self { files: (0..of).map(open).collect::<std::io::Result<_>>().map_err(disk)? })
    }

    pub(super) fn add(&mut self, fingerprint: u128, ordinal: u64) -> Result<()> {
        // Within a share, the highest bits are what tells fingerprints apart.
        let share = fingerprint as u64 as usize % self.files.len();
        self.files[share].write_all(&Entry::new(fingerprint, ordinal).to_bytes()).map_err(disk)
    }
}

/// The ordinals of rows that only `new` has, and of those that only `old` has.
pub(super) fn compare(old: Shares, new: Shares) -> Result<(RoaringTreemap, RoaringTreemap)> {
    let (mut changed, mut gone) = (RoaringTreemap::new(), RoaringTreemap::new());
    for (old, new) in old.files.into_iter().zip(new.files) {
        let mut old = Share::of(old)?;
        let mut entries = Vec::with_capacity(old.entries);
        while let Some(entry) = old.next()? {
            entries.push(entry);
        }
        drop(old);
        let known = Known::new(entries);
        let mut new = Share::of(new)?;
        while let Some(entry) = new.next()? {
            if !known.claim(entry.fingerprint()) {
                changed.insert(entry.ordinal());
            }
        }
        known.unclaimed(|ordinal| {
            gone.insert(ordinal);
        });
    }
    Ok((changed, gone))
}

/// One share of one side, to be read from its beginning.
struct Share {
    file: BufReader<File>,
    entries: usize,
    read: usize,
}

impl Share {
    fn of(written: BufWriter<File>) -> Result<Self> {
        let mut file = written.into_inner().map_err(|error| disk(error.into_error()))?;
        let entries = file.stream_position().map_err(disk)? as usize / Entry::BYTES;
        file.rewind().map_err(disk)?;
        Ok(Self { file: BufReader::with_capacity(BUFFERS / 8, file), entries, read: 0 })
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        if self.read == self.entries {
            return Ok(None);
        }
        self.read += 1;
        let mut bytes = [0; Entry::BYTES];
        self.file.read_exact(&mut bytes).map_err(disk)?;
        Ok(Some(Entry::from_bytes(&bytes)))
    }
}

fn disk(source: std::io::Error) -> Error {
    Error::new(ErrorKind::Transient, "the comparison of a whole read cannot use the temporary directory")
        .hint("make room there, name another one by `TMPDIR`, or raise `--memory` so that nothing is spilled")
        .because(source)
}
