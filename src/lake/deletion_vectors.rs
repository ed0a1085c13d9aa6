//! Deletion vectors: the hidden rows of one data file as a bitmap, in format version 3.
//!
//! ```text
//! Puffin file   "PFA1" │ blob │ blob │ … │ "PFA1" footer (JSON) length flags "PFA1"
//! one blob              length (BE) │ D1 D3 39 64 │ 64-bit Roaring bitmap │ CRC-32 (BE)
//!                                    └────────── length, CRC ───────────┘
//! ```
//!
//! A manifest says where in the file a blob lies, so that a reader fetches that range and nothing
//! else. Other engines put many vectors into one file, and so they are read; ours have a file each,
//! since there are readers that take one vector of a shared file for another.
//!
//! What always holds: a blob whose checksum, length or number of rows is not what was promised is an
//! error, never fewer hidden rows.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Struct};
use object_store::{ObjectStoreExt, PutPayload};
use roaring::RoaringTreemap;
use serde::Serialize;
use uuid::Uuid;

use super::manifest::LiveFile;
use super::storage::{Stores, store_error};
use super::{LakeTable, WrittenFile};
use crate::error::{Error, ErrorKind, Result};

/// Begins and ends a Puffin file, and begins its footer.
const PUFFIN: &[u8; 4] = b"PFA1";
/// Begins what a blob's checksum covers.
const MAGIC: [u8; 4] = [0xD1, 0xD3, 0x39, 0x64];
/// The bytes of a number before or after the bitmap: length, checksum.
const WORD: usize = 4;
/// The type of a blob.
const BLOB_TYPE: &str = "deletion-vector-v1";
/// The reserved field id of a row's position, of which a vector is made.
const POSITION_FIELD: i32 = 2_147_483_645;
/// Files that are written at once: they are small, latency dominates.
const WRITES_AT_ONCE: usize = 16;
/// What is written of a blob whose snapshot is not known yet, as the specification wants it.
const INHERITED: i64 = -1;

/// Rows to hide in one data file: all of them, those that an older vector hid included.
pub(super) struct Vector {
    /// The data file.
    pub(super) path: String,
    pub(super) spec_id: i32,
    pub(super) partition: Struct,
    /// Not empty.
    pub(super) positions: RoaringTreemap,
}

/// Writes each vector into a new file of its own.
pub(super) async fn write(table: &LakeTable, vectors: Vec<Vector>) -> Result<Vec<WrittenFile>> {
    let writes: Vec<_> = vectors.into_iter().map(|vector| write_one(table, vector)).collect();
    futures::stream::iter(writes).buffered(WRITES_AT_ONCE).try_collect().await
}

async fn write_one(table: &LakeTable, vector: Vector) -> Result<WrittenFile> {
    let location = format!("{}/{}-deletes.puffin", table.data_location(), Uuid::new_v4());
    let (store, place) = table.stores.resolve(&location)?;
    let (offset, blob) = (PUFFIN.len() as u64, encode(&vector.positions)?);
    let length = blob.len() as u64;
    let footer = footer(Blob {
        kind: BLOB_TYPE,
        fields: [POSITION_FIELD],
        snapshot_id: INHERITED,
        sequence_number: INHERITED,
        offset,
        length,
        properties: BTreeMap::from([
            ("cardinality", vector.positions.len().to_string()),
            ("referenced-data-file", vector.path.clone()),
        ]),
    })?;
    let size = offset + length + footer.len() as u64;
    let parts = [Bytes::from_static(PUFFIN), blob.into(), footer.into()];
    store
        .put(&place, PutPayload::from_iter(parts))
        .await
        .map_err(|source| store_error("write a deletion vector", &location, source))?;
    let spec_id = vector.spec_id;
    let file = DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(location)
        .file_format(DataFileFormat::Puffin)
        .partition(vector.partition)
        .partition_spec_id(spec_id)
        .record_count(vector.positions.len())
        .file_size_in_bytes(size)
        .referenced_data_file(Some(vector.path))
        .content_offset(Some(offset as i64))
        .content_size_in_bytes(Some(length as i64))
        .build()
        .map_err(|source| {
            Error::new(ErrorKind::Internal, "a deletion vector was not described").because(source)
        })?;
    Ok(WrittenFile { file, spec_id })
}

/// Whether a file of a snapshot is a vector.
pub(super) fn is_vector(file: &iceberg::spec::DataFile) -> bool {
    file.content_type() == DataContentType::PositionDeletes && file.file_format() == DataFileFormat::Puffin
}

/// The data file of a vector, and its hidden rows.
pub(super) async fn read(stores: &Stores, file: &LiveFile) -> Result<(String, RoaringTreemap)> {
    let damaged = |message: &str| Error::new(ErrorKind::Corrupt, message).with("file", file.path());
    let place = || {
        let offset = u64::try_from(file.file.content_offset()?).ok()?;
        let length = u64::try_from(file.file.content_size_in_bytes()?).ok()?;
        Some((file.file.referenced_data_file()?, offset..offset.checked_add(length)?))
    };
    let (data_file, range) = place()
        .ok_or_else(|| damaged("the manifest does not say where a deletion vector is, or what it is of"))?;
    let (store, path) = stores.resolve(file.path())?;
    let blob = store
        .get_range(&path, range)
        .await
        .map_err(|source| store_error("read a deletion vector", file.path(), source))?;
    let positions = decode(&blob).ok_or_else(|| {
        damaged("a deletion vector is damaged").hint(
            "restore the file from a backup, or roll the table back to a snapshot before it: the rows after it are then read again",
        )
    })?;
    if positions.len() != file.file.record_count() {
        return Err(damaged("a deletion vector does not hide as many rows as the manifest says"));
    }
    Ok((data_file, positions))
}

/// A blob.
fn encode(positions: &RoaringTreemap) -> Result<Vec<u8>> {
    let mut positions = positions.clone();
    // Runs of neighbours, which bulk deletes are made of, take no place.
    positions.optimize();
    let length = MAGIC.len() + positions.serialized_size();
    let mut blob = Vec::with_capacity(length + 2 * WORD);
    let said = u32::try_from(length).map_err(|source| {
        Error::new(ErrorKind::Unsupported, "a deletion vector has more than 4 GB").because(source)
    })?;
    blob.extend(said.to_be_bytes());
    blob.extend(MAGIC);
    positions.serialize_into(&mut blob).expect("memory can be written to");
    let checksum = crc32fast::hash(&blob[WORD..]);
    blob.extend(checksum.to_be_bytes());
    Ok(blob)
}

/// What a blob hides; `None` when it is not as it was written.
fn decode(blob: &[u8]) -> Option<RoaringTreemap> {
    let (length, rest) = blob.split_first_chunk::<WORD>()?;
    let (body, checksum) = rest.split_last_chunk::<WORD>()?;
    let bitmap = body.strip_prefix(&MAGIC)?;
    let whole = u32::from_be_bytes(*length) as usize == body.len()
        && u32::from_be_bytes(*checksum) == crc32fast::hash(body);
    if !whole {
        return None;
    }
    RoaringTreemap::deserialize_from(bitmap).ok()
}

/// One entry of a Puffin footer.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Blob {
    #[serde(rename = "type")]
    kind: &'static str,
    fields: [i32; 1],
    snapshot_id: i64,
    sequence_number: i64,
    offset: u64,
    length: u64,
    properties: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Footer {
    blobs: [Blob; 1],
    properties: BTreeMap<&'static str, &'static str>,
}

fn footer(blob: Blob) -> Result<Vec<u8>> {
    let properties = BTreeMap::from([("created-by", concat!("frazil ", env!("CARGO_PKG_VERSION")))]);
    let footer = Footer { blobs: [blob], properties };
    let payload = serde_json::to_vec(&footer).expect("text and numbers are JSON");
    let length = u32::try_from(payload.len()).map_err(|source| {
        Error::new(ErrorKind::Internal, "the path of a data file has more than 4 GB").because(source)
    })?;
    let mut footer = PUFFIN.to_vec();
    footer.extend(payload);
    footer.extend(length.to_le_bytes());
    // No flags: the footer is not compressed.
    footer.extend([0; WORD]);
    footer.extend(PUFFIN);
    Ok(footer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Laid out by hand from the specification: positions 1 and 2³² + 3.
    #[test]
    fn a_blob_is_laid_out_as_the_specification_says() {
        let positions: RoaringTreemap = [1, (1 << 32) + 3].into_iter().collect();
        let bitmap = |value: u8| {
            // Cookie without runs, one container; key 0, cardinality 1; its offset; the value.
            [&[0x3A, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], [value, 0].as_slice()].concat()
        };
        let mut body = vec![0xD1, 0xD3, 0x39, 0x64, 2, 0, 0, 0, 0, 0, 0, 0];
        body.extend([0, 0, 0, 0]);
        body.extend(bitmap(1));
        body.extend([1, 0, 0, 0]);
        body.extend(bitmap(3));
        let mut blob = (body.len() as u32).to_be_bytes().to_vec();
        blob.extend(&body);
        blob.extend(crc32fast::hash(&body).to_be_bytes());
        assert_eq!(decode(&blob), Some(positions.clone()));
        assert_eq!(encode(&positions).unwrap(), blob);
    }

    fn positions() -> impl Strategy<Value = RoaringTreemap> {
        let some = prop::collection::vec(0u64..1 << 34, 1..200);
        let run = (0u64..1 << 33, 1u64..100_000).prop_map(|(start, length)| start..start + length);
        (some, prop::option::of(run)).prop_map(|(some, run)| {
            let mut all: RoaringTreemap = some.into_iter().collect();
            if let Some(run) = run {
                all.insert_range(run);
            }
            all
        })
    }

    proptest! {
        #[test]
        fn vectors_come_back_as_they_went(positions in positions()) {
            prop_assert_eq!(decode(&encode(&positions).unwrap()), Some(positions));
        }

        #[test]
        fn no_changed_bit_goes_unseen(positions in positions(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut blob = encode(&positions).unwrap();
            let at = at.index(blob.len());
            blob[at] ^= 1 << bit;
            prop_assert_eq!(decode(&blob), None);
            prop_assert_eq!(decode(&blob[..at]), None);
        }
    }
}
