//! Places in the write-ahead log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of log since the cluster was made, as the server writes them: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(in super::super) struct Lsn(pub(in super::super) u64);

impl Lsn {
    /// How many bytes lie between an earlier place and this one.
    pub(super) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = "not a place in the log";
        let (high, low) = text.split_once('/').ok_or(wrong)?;
        let half = |text| u32::from_str_radix(text, 16).map_err(|_| wrong);
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_the_server_does() {
        for text in ["16/B374D848", "0/0", "FFFFFFFF/1"] {
            assert_eq!(Lsn::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        assert!(Lsn::try_from("16".to_owned()).is_err());
        assert!(Lsn(0x16_0000_0000) > Lsn(0x15_FFFF_FFFF));
    }
}
