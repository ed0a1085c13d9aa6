//! What MariaDB compresses in its log (`log_bin_compress`): the text of statements, the rows of an event.

use std::io::Read;

use flate2::read::ZlibDecoder;

use super::event::corrupt;
use crate::error::Result;

/// No event is longer: the protocol has no larger packets.
const LONGEST: u64 = 1 << 30;

/// A byte that says how (zlib is the only way there is) and how many bytes the length has, the length with
/// its greatest byte first, the rest.
pub(super) fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
    let (head, rest) = bytes.split_first().ok_or_else(corrupt)?;
    if head & 0x80 == 0 || head & 0x70 != 0 {
        return Err(corrupt());
    }
    let (length, rest) = rest.split_at_checked(usize::from(head & 7)).ok_or_else(corrupt)?;
    let length = length.iter().fold(0_u64, |length, byte| length << 8 | u64::from(*byte));
    if length > LONGEST {
        return Err(corrupt());
    }
    let mut unpacked = Vec::with_capacity(usize::try_from(length).map_err(|_| corrupt())?);
    ZlibDecoder::new(rest).take(length + 1).read_to_end(&mut unpacked).map_err(|_| corrupt())?;
    if unpacked.len() as u64 == length { Ok(unpacked) } else { Err(corrupt()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    #[test]
    fn what_was_packed_comes_out() {
        let text = b"insert ".repeat(100);
        let mut packed = ZlibEncoder::new(vec![0x82, 2, 188], Compression::fast());
        packed.write_all(&text).unwrap();
        let mut packed = packed.finish().unwrap();
        assert_eq!(unpacked(&packed).unwrap(), text);
        packed[2] = 187;
        assert!(unpacked(&packed).is_err());
        for wrong in [&[][..], &[0x81], &[0x91, 1, 0], &[1, 1, 1], &[0x84, 255, 255, 255, 255]] {
            assert!(unpacked(wrong).is_err());
        }
    }
}
