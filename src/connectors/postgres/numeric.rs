//! Postgres' binary `numeric`: digits to the base of 10,000, to a decimal of fixed scale.
//!
//! ```text
//! count │ weight │ sign │ display scale │ digit …        value = Σ digit[i] × 10000^(weight - i)
//! ```

/// The largest precision that a decimal in the lake can have.
pub(super) const MAX_PRECISION: u8 = 38;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// What a value is, seen from a decimal of fixed precision and scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// The value times 10^scale.
    Fits(i128),
    /// More digits before the point than the precision allows; infinity too.
    TooLarge {
        /// On which side of zero.
        negative: bool,
    },
    /// More digits behind the point than the scale; the nearest value that fits.
    TooFine(i128),
    /// Not a number.
    NaN,
}

/// 10 to the power of `n`, up to 38.
pub(super) const fn power(n: u32) -> i128 {
    10i128.pow(n)
}

/// Reads a value as a decimal of this precision and scale; `None` when it is malformed.
#[inline]
pub(super) fn decode(value: &[u8], precision: u8, scale: u8) -> Option<Number> {
    let (header, digits) = value.split_first_chunk::<8>()?;
    let count = u16::from_be_bytes([header[0], header[1]]) as usize;
    let weight = i32::from(i16::from_be_bytes([header[2], header[3]]));
    let sign = u16::from_be_bytes([header[4], header[5]]);
    if digits.len() != count * 2 {
        return None;
    }
    let negative = match sign {
        0 => false,
        NEGATIVE => true,
        NAN => return Some(Number::NaN),
        INFINITY => return Some(Number::TooLarge { negative: false }),
        NEGATIVE_INFINITY => return Some(Number::TooLarge { negative: true }),
        _ => return None,
    };
    if count == 0 {
        return Some(Number::Fits(0));
    }
    // The power of ten by which the digits, read as one integer, have to be multiplied.
    let shift = 4 * (weight - count as i32 + 1) + i32::from(scale);
    // Up to 15 digits and a shift inside of a group: everything fits into 64 bits.
    if count <= 3 && (-3..=4).contains(&shift) {
        let mut sum = 0i64;
        for digit in digits.chunks_exact(2) {
            sum = sum * 10_000 + i64::from(group(digit)?);
        }
        let (sum, rest) = if shift >= 0 {
            (sum * POWERS[shift as usize], 0)
        } else {
            (sum / POWERS[-shift as usize], sum % POWERS[-shift as usize])
        };
        if rest == 0 && (precision >= 19 || i128::from(sum) < power(u32::from(precision))) {
            return Some(Number::Fits(i128::from(if negative { -sum } else { sum })));
        }
    }
    decode_wide(digits, shift, negative, power(u32::from(precision)))
}

const POWERS: [i64; 5] = [1, 10, 100, 1_000, 10_000];

#[inline]
fn group(digit: &[u8]) -> Option<u16> {
    let digit = u16::from_be_bytes([digit[0], digit[1]]);
    (digit < 10_000).then_some(digit)
}

/// Any size: digit by digit, so that nothing overflows before it is known to be too large.
#[cold]
fn decode_wide(digits: &[u8], shift: i32, negative: bool, limit: i128) -> Option<Number> {
    let count = digits.len() / 2;
    let mut sum = 0i128;
    let mut too_large = false;
    // The first decimal digit behind the scale decides how to round; whether any is not zero,
    // whether the value is exact.
    let mut first_behind = None;
    let mut exact = true;
    for (i, digit) in digits.chunks_exact(2).enumerate() {
        let digit = group(digit)?;
        for place in (0..4u32).rev() {
            let decimal = i128::from(digit / 10u16.pow(place) % 10);
            // The power of ten of this decimal digit, in units of the result.
            let power_of_ten = 4 * (count - 1 - i) as i32 + place as i32 + shift;
            if power_of_ten < 0 {
                if power_of_ten == -1 {
                    first_behind = Some(decimal);
                }
                exact &= decimal == 0;
            } else if !too_large {
                sum = sum * 10 + decimal;
                too_large = sum >= limit;
            }
        }
    }
    for _ in 0..shift.max(0) {
        if too_large || sum == 0 {
            break;
        }
        sum *= 10;
        too_large = sum >= limit;
    }
    if too_large {
        return Some(Number::TooLarge { negative });
    }
    let signed = |sum: i128| if negative { -sum } else { sum };
    if exact {
        return Some(Number::Fits(signed(sum)));
    }
    let rounded = if first_behind >= Some(5) { sum + 1 } else { sum };
    Some(if rounded >= limit { Number::TooLarge { negative } } else { Number::TooFine(signed(rounded)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the server writes it: no leading and no trailing group of zeros.
    fn encode(unscaled: i128, scale: u32) -> Vec<u8> {
        let text = format!("{:0width$}", unscaled.unsigned_abs(), width = scale as usize + 1);
        let (whole, fraction) = text.split_at(text.len() - scale as usize);
        let whole = format!("{whole:0>width$}", width = whole.len().div_ceil(4) * 4);
        let fraction = format!("{fraction:0<width$}", width = fraction.len().div_ceil(4) * 4);
        let mut weight = whole.len() as i32 / 4 - 1;
        let all = whole + &fraction;
        let mut groups: Vec<u16> =
            all.as_bytes().chunks(4).map(|g| std::str::from_utf8(g).unwrap().parse().unwrap()).collect();
        while groups.first() == Some(&0) {
            groups.remove(0);
            weight -= 1;
        }
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let sign = if unscaled < 0 { NEGATIVE } else { 0 };
        raw(&groups, weight as i16, sign, scale as u16)
    }

    fn raw(groups: &[u16], weight: i16, sign: u16, scale: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [groups.len() as u16, weight as u16, sign, scale].iter().chain(groups) {
            bytes.extend(word.to_be_bytes());
        }
        bytes
    }

    proptest! {
        #[test]
        fn every_decimal_comes_back(unscaled in -(power(38) - 1)..power(38), digits in 1u32..=38, scale in 0u32..=38) {
            let unscaled = unscaled % power(digits);
            prop_assert_eq!(decode(&encode(unscaled, scale), 38, scale as u8), Some(Number::Fits(unscaled)));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), precision in 1u8..=38, scale in 0u8..=38) {
            let _ = decode(&bytes, precision, scale.min(precision));
        }

        #[test]
        fn a_wider_scale_appends_zeros(unscaled in -power(20)..power(20), scale in 0u32..10) {
            prop_assert_eq!(decode(&encode(unscaled, scale), 38, scale as u8 + 5), Some(Number::Fits(unscaled * 100_000)));
        }
    }

    #[test]
    fn what_does_not_fit_says_how() {
        let pi = encode(31_415, 4);
        assert_eq!(decode(&pi, 10, 4), Some(Number::Fits(31_415)));
        assert_eq!(decode(&pi, 10, 2), Some(Number::TooFine(314)));
        assert_eq!(decode(&pi, 10, 3), Some(Number::TooFine(3_142)));
        assert_eq!(decode(&encode(-99_995, 4), 2, 1), Some(Number::TooLarge { negative: true }));
        assert_eq!(decode(&encode(1_000, 0), 3, 0), Some(Number::TooLarge { negative: false }));
        assert_eq!(decode(&raw(&[], 0, NAN, 0), 3, 0), Some(Number::NaN));
        assert_eq!(decode(&raw(&[], 0, INFINITY, 0), 3, 0), Some(Number::TooLarge { negative: false }));
        assert_eq!(decode(&raw(&[1], 30_000, 0, 0), 38, 0), Some(Number::TooLarge { negative: false }));
        assert_eq!(decode(&raw(&[10_000], 0, 0, 0), 38, 0), None);
        assert_eq!(decode(&raw(&[1], 0, 1, 0), 38, 0), None);
        assert_eq!(decode(&[0, 1, 0, 0, 0, 0, 0, 0], 38, 0), None);
    }
}
