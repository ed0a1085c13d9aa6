//! Places in the log at which passes of several tables end, so that together they show one state.
//!
//! ```text
//! commit 1 ── commit 2 ──┊── commit 3 ──▶ log        a commit belongs to the place if its record begins before it
//!                      place
//! ```
//!
//! What a transaction changed is in the log under its commit, whatever the table. So tables that were each
//! followed up to the same place hold the same transactions, whole: what a replica that had come so far would show.

use chrono::DateTime;

use super::super::position::Micros;
use super::super::{discover, horizon};
use super::end;
use super::lsn::Lsn;
use crate::clients::postgres::Session;
use crate::delta::LogPlace;
use crate::error::{Error, ErrorKind, Result};

/// A place behind everything that was committed before this is called, and that can be read up to.
pub(in super::super) async fn end_of_log(session: &Session) -> Result<LogPlace> {
    let time = horizon::clock(session).await?.and_then(|Micros(at)| DateTime::from_timestamp_micros(at));
    let unknown = || Error::new(ErrorKind::Transient, "the server does not say what time it is");
    let time = time.ok_or_else(unknown)?;
    let server = discover::cluster(session).await;
    let written = end::end_of_written(session).await?;
    end::end_of_log(session, Some(written)).await?;
    Ok(LogPlace { server, at: written.to_string(), time })
}

/// Up to where a pass reads that is to end at a place, and the place if it can end there: not if the table is
/// beyond it, or shows a state only from `least` on.
pub(super) fn bound(
    place: &LogPlace,
    server: Option<&str>,
    least: Lsn,
    end: Lsn,
) -> Result<(Lsn, Option<LogPlace>)> {
    let wanted = Lsn::try_from(place.at.clone()).map_err(|why| Error::new(ErrorKind::Internal, why))?;
    if place.server.as_deref() != server || wanted > end {
        let message = "the server is another one than was asked where its log ends, or was restored since";
        return Err(Error::new(ErrorKind::Transient, message).hint("the next pass asks again"));
    }
    // A table that is beyond the end of the log is answered where the pass begins.
    Ok((wanted.max(least).min(end), Some(place.clone()).filter(|_| wanted >= least)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_ends_at_the_place_or_says_that_it_does_not() {
        let place = LogPlace { server: Some("7/1".into()), at: "0/64".into(), time: DateTime::UNIX_EPOCH };
        let check = |server, least, end| bound(&place, server, Lsn(least), Lsn(end));
        let ends =
            |outcome: Result<(Lsn, Option<LogPlace>)>| outcome.map(|(at, there)| (at.0, there.is_some()));
        assert_eq!(ends(check(Some("7/1"), 50, 200)).unwrap(), (100, true));
        assert_eq!(ends(check(Some("7/1"), 100, 100)).unwrap(), (100, true));
        assert_eq!(ends(check(Some("7/1"), 101, 200)).unwrap(), (101, false), "it was read further already");
        assert_eq!(
            ends(check(Some("7/1"), 250, 200)).unwrap(),
            (200, false),
            "the log is shorter than the table"
        );
        assert!(check(Some("7/2"), 50, 200).is_err(), "another timeline");
        assert!(check(Some("7/1"), 50, 99).is_err(), "a log that is shorter than it was");
    }
}
