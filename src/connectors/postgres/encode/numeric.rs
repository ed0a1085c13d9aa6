//! Numbers in the binary form of `numeric`: groups of four decimal digits, the most significant first.
//!
//! `{ i32 length, i16 groups, i16 weight, u16 sign, u16 scale, groups × u16 }`; the value is
//! Σ group[i] × 10000^(weight - i). Groups of zeros at either end are left out.

use bytes::{BufMut, BytesMut};

use super::Problem;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// A 128-bit number has at most 39 digits: eleven groups, wherever the point lies.
const MOST_GROUPS: usize = 11;
/// Length, and the four fields before the groups.
const HEAD: usize = 4 + 8;

/// Writes `value / 10^scale`, with its length.
pub(super) fn write_decimal(value: i128, scale: i8, buffer: &mut BytesMut) -> Result<(), Problem> {
    let mut rest = value.unsigned_abs();
    if scale < 0 {
        let factor = 10u128.checked_pow(u32::from(scale.unsigned_abs())).ok_or(Problem::Range)?;
        rest = rest.checked_mul(factor).ok_or(Problem::Range)?;
    }
    let scale = scale.max(0) as usize;
    let fraction_groups = scale.div_ceil(4);
    // The last group is filled up with zeros on the right.
    let padding = fraction_groups * 4 - scale;
    let (divisor, factor) = (10u32.pow(4 - padding as u32), 10u16.pow(padding as u32));

    let mut groups = [0u16; MOST_GROUPS];
    let mut count = 0; // the least significant first
    if rest > 0 {
        groups[0] = (rest % u128::from(divisor)) as u16 * factor;
        rest /= u128::from(divisor);
        count = 1;
        while rest > u128::from(u64::MAX) {
            groups[count] = (rest % 10_000) as u16;
            rest /= 10_000;
            count += 1;
        }
        let mut rest = rest as u64; // most numbers come here at once; dividing 128 bits is slow
        while rest > 0 {
            groups[count] = (rest % 10_000) as u16;
            rest /= 10_000;
            count += 1;
        }
    }
    let weight = count as i16 - fraction_groups as i16 - 1;
    let zeros = groups[..count].iter().take_while(|group| **group == 0).count();
    let digits = &groups[zeros..count];

    let mut bytes = [0u8; HEAD + 2 * MOST_GROUPS];
    let length = 8 + 2 * digits.len();
    bytes[0..4].copy_from_slice(&(length as i32).to_be_bytes());
    bytes[4..6].copy_from_slice(&(digits.len() as i16).to_be_bytes());
    bytes[6..8].copy_from_slice(&if digits.is_empty() { 0 } else { weight }.to_be_bytes());
    bytes[8..10].copy_from_slice(&if value < 0 { NEGATIVE } else { 0 }.to_be_bytes());
    bytes[10..12].copy_from_slice(&(scale as u16).to_be_bytes());
    for (place, group) in bytes[HEAD..].chunks_exact_mut(2).zip(digits.iter().rev()) {
        place.copy_from_slice(&group.to_be_bytes());
    }
    buffer.put_slice(&bytes[..4 + length]);
    Ok(())
}

/// Writes a number given as decimal text (`-12.340`, `NaN`, `-Infinity`), with its length. The digits
/// after the point are kept, zeros too.
pub(super) fn write_text(text: &str, buffer: &mut BytesMut) -> Result<(), Problem> {
    let special = match text {
        "NaN" => Some(NAN),
        "Infinity" => Some(INFINITY),
        "-Infinity" => Some(NEGATIVE_INFINITY),
        _ => None,
    };
    if let Some(sign) = special {
        buffer.put_i32(8);
        buffer.put_u32(0);
        buffer.put_u16(sign);
        buffer.put_u16(0);
        return Ok(());
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, fraction) = (whole.as_bytes(), fraction.as_bytes());
    if whole.is_empty() && fraction.is_empty()
        || whole.iter().chain(fraction).any(|digit| !digit.is_ascii_digit())
    {
        return Err(Problem::Number);
    }
    let leading = whole.iter().take_while(|digit| **digit == b'0').count();
    let whole = &whole[leading..];
    let mut weight = whole.len().div_ceil(4) as i64 - 1;

    let start = buffer.len();
    buffer.put_bytes(0, HEAD);
    let mut push = |group: u16, buffer: &mut BytesMut| {
        if group == 0 && buffer.len() == start + HEAD {
            weight -= 1;
        } else {
            buffer.put_u16(group);
        }
    };
    let first = whole.len() % 4;
    if first > 0 {
        push(number(&whole[..first]), buffer);
    }
    for group in whole[first..].chunks(4) {
        push(number(group), buffer);
    }
    for group in fraction.chunks(4) {
        push(number(group) * 10u16.pow(4 - group.len() as u32), buffer);
    }
    while buffer.len() > start + HEAD && buffer[buffer.len() - 2..] == [0, 0] {
        buffer.truncate(buffer.len() - 2);
    }
    let count = (buffer.len() - start - HEAD) / 2;
    let weight = if count == 0 { 0 } else { i16::try_from(weight).map_err(|_| Problem::Range)? };
    let scale = u16::try_from(fraction.len()).ok().filter(|scale| *scale <= 16_383).ok_or(Problem::Range)?;
    let groups = u16::try_from(count).map_err(|_| Problem::Range)?;
    let head = &mut buffer[start..start + HEAD];
    head[0..4].copy_from_slice(&(8 + 2 * count as i32).to_be_bytes());
    head[4..6].copy_from_slice(&groups.to_be_bytes());
    head[6..8].copy_from_slice(&weight.to_be_bytes());
    head[8..10].copy_from_slice(&if negative && count > 0 { NEGATIVE } else { 0 }.to_be_bytes());
    head[10..12].copy_from_slice(&scale.to_be_bytes());
    Ok(())
}

fn number(digits: &[u8]) -> u16 {
    digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text of a written number, read as the manual describes the form.
    fn read(mut bytes: &[u8]) -> String {
        use bytes::Buf;
        let length = bytes.get_i32() as usize;
        assert_eq!(bytes.len(), length);
        let (groups, weight) = (bytes.get_i16(), bytes.get_i16());
        let (sign, scale) = (bytes.get_u16(), usize::from(bytes.get_u16()));
        let digits: Vec<u16> = (0..groups).map(|_| bytes.get_u16()).collect();
        assert!(digits.first() != Some(&0) && digits.last() != Some(&0));
        let group = |power: i16| {
            let index = i32::from(weight) - i32::from(power);
            usize::try_from(index).ok().and_then(|index| digits.get(index)).copied().unwrap_or(0)
        };
        let mut whole: String =
            (0..=weight.max(0)).rev().map(|power| format!("{:04}", group(power))).collect();
        whole = whole.trim_start_matches('0').to_owned();
        let mut fraction: String =
            (1..=scale.div_ceil(4) as i16).map(|power| format!("{:04}", group(-power))).collect();
        assert!(fraction[scale..].chars().all(|digit| digit == '0'));
        fraction.truncate(scale);
        let minus = if sign == NEGATIVE { "-" } else { "" };
        let whole = if whole.is_empty() { "0" } else { &whole };
        if scale == 0 { format!("{minus}{whole}") } else { format!("{minus}{whole}.{fraction}") }
    }

    fn decimal(value: i128, scale: i8) -> String {
        let mut buffer = BytesMut::new();
        write_decimal(value, scale, &mut buffer).unwrap();
        read(&buffer)
    }

    fn text(value: &str) -> String {
        let mut buffer = BytesMut::new();
        write_text(value, &mut buffer).unwrap();
        read(&buffer)
    }

    #[test]
    fn edges() {
        assert_eq!(decimal(0, 2), "0.00");
        assert_eq!(decimal(-1, 38), format!("-0.{:0>38}", 1));
        assert_eq!(decimal(i128::MAX, 0), i128::MAX.to_string());
        assert_eq!(decimal(12, -3), "12000");
        assert_eq!(decimal(100_000_000, 4), "10000.0000");
        assert_eq!(text("-0.00"), "0.00");
        assert_eq!(text("00012.340"), "12.340");
        assert_eq!(text(".5"), "0.5");
        for wrong in ["", "-", "1e5", "1.2.3", "one", "٣"] {
            assert_eq!(write_text(wrong, &mut BytesMut::new()), Err(Problem::Number), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn decimals_and_texts_are_the_same_bytes(value: i128, scale in 0i8..=38) {
            let value = value % 10i128.pow(38);
            let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale as usize + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
            let minus = if value < 0 { "-" } else { "" };
            let written = if scale == 0 { format!("{minus}{whole}") } else { format!("{minus}{whole}.{fraction}") };
            let (mut a, mut b) = (BytesMut::new(), BytesMut::new());
            write_decimal(value, scale, &mut a).unwrap();
            write_text(&written, &mut b).unwrap();
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(read(&a), written);
        }
    }
}
