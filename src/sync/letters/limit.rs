//! How many rows of a pass may be rejected before it is stopped.

use crate::error::{Error, ErrorKind};

/// The most that may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RejectLimit {
    /// So many rows.
    Rows(u64),
    /// This share of the rows read: 0 to 1.
    Share(f64),
}

impl RejectLimit {
    /// What is wrong when so many of so many rows are rejected, for these reasons.
    pub(super) fn exceeded<'a>(
        self,
        rejected: u64,
        of: u64,
        reasons: impl Iterator<Item = &'a str>,
    ) -> Option<Error> {
        let (over, most) = match self {
            Self::Rows(most) => (rejected > most, format!("at most {most} may be")),
            Self::Share(share) => {
                (rejected as f64 > share * of as f64, format!("at most {}% may be", share * 100.0))
            }
        };
        over.then(|| {
            let reasons = reasons.collect::<Vec<_>>().join(", ");
            Error::new(ErrorKind::Data, format!("{rejected} of {of} rows are rejected, {most}: {reasons}"))
                .hint("correct the rows or the table, or raise `max_rejected`; nothing of them is committed")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_a_share() {
        let exceeded = |limit: RejectLimit, rejected, of| {
            limit
                .exceeded(rejected, of, ["`n` does not fit Int32"].into_iter())
                .map(|error| error.to_string())
        };
        assert_eq!(exceeded(RejectLimit::Rows(2), 2, 2), None);
        assert_eq!(
            exceeded(RejectLimit::Rows(2), 3, 9).unwrap(),
            "3 of 9 rows are rejected, at most 2 may be: `n` does not fit Int32"
        );
        assert_eq!(exceeded(RejectLimit::Share(0.001), 1, 1000), None);
        assert_eq!(
            exceeded(RejectLimit::Share(0.001), 2, 1000).unwrap(),
            "2 of 1000 rows are rejected, at most 0.1% may be: `n` does not fit Int32"
        );
        assert!(exceeded(RejectLimit::Rows(0), 1, 1).is_some());
        assert_eq!(exceeded(RejectLimit::Share(0.0), 0, 0), None);
    }
}
