//! Sets of MySQL's transactions, by the numbers that servers give them.
//!
//! ```text
//! 3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:8, 6b1a33f5-…:1-77:reports:1-3
//! ```
//!
//! Each server counts its own, under its UUID; from 8.3 on by a tag apart, if a session wants it. The
//! numbers stay when a transaction is replicated: so a set means the same on every server of a topology.

use std::collections::BTreeMap;
use std::fmt;

use mysql_async::Sid;
use uuid::Uuid;

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gtid {
    pub(super) source: Source,
    pub(super) number: u64,
}

/// Who counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) server: Uuid,
    /// Empty where there is none.
    pub(super) tag: String,
}

/// Transactions: of each source ranges of numbers, first and last, in order and apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GtidSet(BTreeMap<Source, Vec<(u64, u64)>>);

/// The longest tag.
const LONGEST_TAG: usize = 32;

impl GtidSet {
    /// Reads a set as the server writes it. `None`: it is none, or one of a kind that is not known here.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for of_server in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut parts = of_server.split(':').map(str::trim);
            let server = Uuid::try_parse(parts.next()?).ok()?;
            let mut source = Source { server, tag: String::new() };
            let mut counted = false;
            for part in parts {
                if is_tag(part) {
                    // A tag without numbers would take those of the next one.
                    if !source.tag.is_empty() && !counted {
                        return None;
                    }
                    source.tag = part.to_ascii_lowercase();
                    counted = false;
                } else {
                    set.add(&source, range(part)?);
                    counted = true;
                }
            }
            if !counted {
                return None;
            }
        }
        Some(set)
    }

    fn add(&mut self, source: &Source, (first, last): (u64, u64)) {
        let ranges = self.0.entry(source.clone()).or_default();
        ranges.push((first, last));
        ranges.sort_unstable();
        let mut apart: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges.drain(..) {
            match apart.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => apart.push((first, last)),
            }
        }
        *ranges = apart;
    }

    /// Whether a transaction is in it.
    pub(super) fn contains(&self, gtid: &Gtid) -> bool {
        let ranges = self.0.get(&gtid.source);
        ranges.is_some_and(|ranges| ranges.iter().any(|(a, b)| (*a..=*b).contains(&gtid.number)))
    }

    /// Whether another set has all that it has.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(source, ranges)| {
            let others = other.0.get(source).map(Vec::as_slice).unwrap_or_default();
            // Ranges are apart: one that lies in several others lies in none.
            ranges.iter().all(|(first, last)| others.iter().any(|(a, b)| a <= first && last <= b))
        })
    }

    /// Takes a transaction out.
    pub(super) fn remove(&mut self, gtid: &Gtid) {
        let Some(ranges) = self.0.get_mut(&gtid.source) else { return };
        let number = gtid.number;
        let left = ranges.iter().flat_map(|&(first, last)| {
            let parts = if (first..=last).contains(&number) {
                [(first, number - 1), (number + 1, last)]
            } else {
                // The second one is empty.
                [(first, last), (1, 0)]
            };
            parts.into_iter().filter(|(first, last)| first <= last)
        });
        *ranges = left.collect();
        if ranges.is_empty() {
            self.0.remove(&gtid.source);
        }
    }

    /// The same for the client, which sends it.
    pub(super) fn sids(&self) -> Option<Vec<Sid<'static>>> {
        self.0.iter().map(|(source, ranges)| written(source, ranges).parse().ok()).collect()
    }
}

/// A number, or the first and the last of several.
fn range(text: &str) -> Option<(u64, u64)> {
    let number = |text: &str| {
        let number: u64 = text.trim().parse().ok()?;
        // The server's are signed.
        (1..i64::MAX as u64).contains(&number).then_some(number)
    };
    match text.split_once('-') {
        None => number(text).map(|number| (number, number)),
        Some((first, last)) => Some((number(first)?, number(last)?)).filter(|(first, last)| first <= last),
    }
}

fn is_tag(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.len() <= LONGEST_TAG
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn written(source: &Source, ranges: &[(u64, u64)]) -> String {
    let mut text = source.server.to_string();
    if !source.tag.is_empty() {
        text = format!("{text}:{}", source.tag);
    }
    for (first, last) in ranges {
        text += &if first == last { format!(":{first}") } else { format!(":{first}-{last}") };
    }
    text
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(source, ranges)| written(source, ranges)).collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "6b1a33f5-0000-11ee-be56-0242ac120002";

    fn read(text: &str) -> GtidSet {
        GtidSet::parse(text).unwrap()
    }

    #[test]
    fn sets_are_read_as_servers_write_them() {
        for (said, meant) in [
            ("", String::new()),
            (&format!("{A}:1-5"), format!("{A}:1-5")),
            (&format!("{}:1-5:9:7-8,\n{B}:3", A.to_uppercase()), format!("{A}:1-5:7-9,{B}:3")),
            (&format!("{A}:1-3:4-5,{A}:6"), format!("{A}:1-6")),
            (&format!("{A}:1-3:reports:1-2:5:x_1:7"), format!("{A}:1-3,{A}:reports:1-2:5,{A}:x_1:7")),
            (&format!("{A}:Reports:1"), format!("{A}:reports:1")),
        ] {
            let set = read(said);
            assert_eq!(set.to_string(), meant, "{said}");
            assert_eq!(read(&meant), set);
            assert_eq!(set.sids().unwrap().len(), meant.split(',').filter(|part| !part.is_empty()).count());
        }
        for wrong in [
            "1-5",
            "0-1-100",
            A,
            &format!("{A}:"),
            &format!("{A}:0"),
            &format!("{A}:5-4"),
            &format!("{A}:1-"),
            &format!("{A}:tag"),
            &format!("{A}:a:b:1"),
            &format!("{A}:new-kind:1"),
            &format!("{A}:9223372036854775807"),
            &format!("{A}:{}:1", "t".repeat(33)),
        ] {
            assert_eq!(GtidSet::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tags_are_counted_apart() {
        let set = read(&format!("{A}:1-3:t:1-9"));
        let of = |tag: &str, number| Gtid {
            source: Source { server: A.parse().unwrap(), tag: tag.to_owned() },
            number,
        };
        assert!(set.contains(&of("", 3)) && !set.contains(&of("", 4)) && set.contains(&of("t", 4)));
        assert!(!read(&format!("{A}:1-4")).is_within(&set) && read(&format!("{A}:t:2")).is_within(&set));
    }

    /// Numbers of two servers, as a set of the test's own and as text.
    fn some() -> impl Strategy<Value = (BTreeSet<(u8, u64)>, GtidSet)> {
        proptest::collection::btree_set((0_u8..2, 1_u64..30), 0..40).prop_map(|numbers| {
            let parts: Vec<_> =
                numbers.iter().map(|(of, number)| format!("{}:{number}", [A, B][usize::from(*of)])).collect();
            (numbers, read(&parts.join(",")))
        })
    }

    proptest! {
        #[test]
        fn they_are_sets((a, set) in some(), (b, other) in some(), of in 0_u8..2, number in 1_u64..30) {
            let server = [A, B][usize::from(of)].parse().unwrap();
            let gtid = Gtid { source: Source { server, tag: String::new() }, number };
            prop_assert_eq!(set.contains(&gtid), a.contains(&(of, number)));
            prop_assert_eq!(set.is_within(&other), a.is_subset(&b));
            prop_assert_eq!(&read(&set.to_string()), &set);
            let (mut a, mut less) = (a, set);
            a.remove(&(of, number));
            less.remove(&gtid);
            let same = a.iter().all(|(of, number)| {
                let server = [A, B][usize::from(*of)].parse().unwrap();
                less.contains(&Gtid { source: Source { server, tag: String::new() }, number: *number })
            });
            prop_assert!(same && !less.contains(&gtid) && (less == GtidSet::default()) == a.is_empty());
        }

        #[test]
        fn no_text_makes_a_panic(text in "[0-9a-f:, _t-]{0,80}") {
            let _ = GtidSet::parse(&text).map(|set| set.sids());
        }
    }
}
