//! Which transactions a read has seen: the log repeats them, and they are passed over.

use serde::{Deserialize, Serialize};

/// A snapshot as the server writes it: `xmin:xmax:xip,xip,…`. Transactions below the first number were
/// over, those from the second on had not begun, and those in the list were open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(in super::super) struct Snapshot {
    first_open: u64,
    next: u64,
    open: Vec<u64>,
}

impl Snapshot {
    /// The first transaction that it may not have seen.
    pub(in super::super) fn first_open(&self) -> u64 {
        self.first_open
    }

    /// Whether it sees what a transaction did that has been committed since. The log names transactions by
    /// the lower half of their number, and only such as are near.
    pub(super) fn sees(&self, transaction: u32) -> bool {
        // How far it is behind the next one, around the end of the numbers if need be.
        let distance = (self.next as u32).wrapping_sub(transaction) as i32;
        let Some(transaction) = self.next.checked_add_signed(-i64::from(distance)) else { return true };
        transaction < self.next && (transaction < self.first_open || !self.open.contains(&transaction))
    }
}

impl TryFrom<String> for Snapshot {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = "not a snapshot";
        let number = |text: &str| text.parse().map_err(|_| wrong);
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(wrong);
        let (first_open, last, open) = (number(next()?)?, number(next()?)?, next()?);
        let open = open.split(',').filter(|part| !part.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Self { first_open, next: last, open })
    }
}

impl From<Snapshot> for String {
    fn from(snapshot: Snapshot) -> Self {
        let open: Vec<_> = snapshot.open.iter().map(u64::to_string).collect();
        format!("{}:{}:{}", snapshot.first_open, snapshot.next, open.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_was_over() {
        let text = "700:710:700,705".to_owned();
        let snapshot = Snapshot::try_from(text.clone()).unwrap();
        assert_eq!(String::from(snapshot.clone()), text);
        let seen: Vec<u32> = (698..712).filter(|transaction| snapshot.sees(*transaction)).collect();
        assert_eq!(seen, [698, 699, 701, 702, 703, 704, 706, 707, 708, 709]);
        assert!(Snapshot::try_from("700".to_owned()).is_err());
        assert!(Snapshot::try_from("7:9:".to_owned()).unwrap().open.is_empty());
    }

    #[test]
    fn numbers_go_on_beyond_32_bits() {
        let next = (3u64 << 32) + 5;
        let snapshot = Snapshot { first_open: next - 10, next, open: vec![next - 10, next - 2] };
        for (transaction, seen) in
            [(5, false), (4, true), (3, false), (u32::MAX - 4, false), (u32::MAX - 5, true)]
        {
            assert_eq!(snapshot.sees(transaction), seen, "{transaction}");
        }
    }
}
