//! How far MariaDB's log was followed, in numbers of transactions: the last one of each domain.
//!
//! ```text
//! 0-1-1042,7-1-12        domain, server, number
//! ```
//!
//! A place in a file is one server's. The numbers of the transactions before it are the same on every
//! server that has them.

use std::collections::BTreeMap;
use std::fmt;

use super::event::Number;

/// The last transaction of each domain: its server and its number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Domains(BTreeMap<u32, (u32, u64)>);

impl Domains {
    /// Reads them as the server writes them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut domains = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut numbers = part.split('-');
            let (domain, server) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
            let last = (server, numbers.next()?.parse().ok()?);
            if numbers.next().is_some() || domains.insert(domain, last).is_some() {
                return None;
            }
        }
        Some(Self(domains))
    }

    /// The first domain of which a server has not what these have. `logged` is the last number of each domain and
    /// server in its log, `applied` what it has come to as a replica: one with a log that begins just there has no
    /// older ones to show. A server says nothing of a domain that its log does not know, until it has something
    /// there.
    pub(super) fn lacking(&self, logged: &str, applied: &str) -> Option<u32> {
        let numbers = |text: &str| -> Vec<(u32, u32, u64)> {
            let number = |part: &str| {
                let mut numbers = part.trim().split('-');
                let (domain, server) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
                Some((domain, server, numbers.next()?.parse().ok()?))
            };
            text.split(',').filter_map(number).collect()
        };
        let (logged, applied) = (numbers(logged), numbers(applied));
        let lacks = |(domain, (server, number)): (&u32, &(u32, u64))| {
            let has = logged.iter().any(|(d, s, last)| d == domain && s == server && last >= number);
            !has && !applied.contains(&(*domain, *server, *number))
        };
        self.0.iter().find(|of| lacks(*of)).map(|(domain, _)| *domain)
    }

    /// Goes on to a transaction of a server.
    pub(super) fn take(&mut self, number: Number, server: u32) {
        self.0.insert(number.domain, (server, number.sequence));
    }
}

impl fmt::Display for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> =
            self.0.iter().map(|(domain, (server, number))| format!("{domain}-{server}-{number}")).collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_domain_counts() {
        let mut domains = Domains::parse("0-1-1042, 7-1-12").unwrap();
        domains.take(Number { domain: 0, sequence: 1043 }, 2);
        domains.take(Number { domain: 9, sequence: 1 }, 2);
        assert_eq!(domains.to_string(), "0-2-1043,7-1-12,9-2-1");
        assert_eq!(Domains::parse(&domains.to_string()), Some(domains));
        assert_eq!(Domains::parse(""), Some(Domains::default()));
        let read = Domains::parse("0-1-490,7-1-12").unwrap();
        let logged = "0-1-500,0-2-501,7-1-12";
        assert_eq!(read.lacking(logged, ""), None);
        assert_eq!(read.lacking("0-1-489,7-1-12", ""), Some(0));
        assert_eq!(read.lacking("0-2-501,7-1-12", ""), Some(0), "another server's numbers");
        assert_eq!(read.lacking("7-1-12", "0-1-500"), Some(0), "it does not say what came since");
        assert_eq!(read.lacking("7-1-12", "0-1-490, 3-1-4"), None);
        assert_eq!(read.lacking("0-1-500", "0-1-500"), Some(7));
        for wrong in ["0-1", "0-1-2-3", "0-1-2,0-1-3", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5"] {
            assert_eq!(Domains::parse(wrong), None, "{wrong}");
        }
    }
}
