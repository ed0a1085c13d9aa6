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
        for wrong in ["0-1", "0-1-2-3", "0-1-2,0-1-3", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5"] {
            assert_eq!(Domains::parse(wrong), None, "{wrong}");
        }
    }
}
