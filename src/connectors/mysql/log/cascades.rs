//! Changes by foreign keys (`ON DELETE CASCADE`), which InnoDB makes without a word in the log: from which
//! tables they come.

use std::collections::HashSet;

use super::super::discover::CASCADES;
use super::rows::{Kind, TableMap};
use crate::clients::mysql::{Session, integer, literal, text};
use crate::error::Result;
use crate::table::TableId;

/// From where rows of a table are changed, over any number of tables in between.
#[derive(Debug, Default)]
pub(super) struct Cascades {
    /// Databases and names, in lower case. The table itself may be one.
    from: HashSet<(String, String)>,
    /// There may be more of them: what the user has no right to is not told.
    others: bool,
    deletes: bool,
    updates: bool,
}

/// What a foreign key does.
struct Edge {
    from: (String, String),
    deletes: bool,
    updates: bool,
}

impl Cascades {
    /// Asks the server.
    pub(super) async fn look(session: &mut Session, table: &TableId) -> Result<Self> {
        let mut found = Self::default();
        let mut next = vec![(table.schema_or("").to_owned(), table.name.clone())];
        while let Some(child) = next.pop() {
            for edge in edges(session, &child).await? {
                found.deletes |= edge.deletes;
                found.updates |= edge.updates;
                let (schema, name) = &edge.from;
                if found.from.insert((schema.to_lowercase(), name.to_lowercase())) {
                    // MariaDB names the table in the log where a statement may cascade into it.
                    found.others |= !session.server().mariadb && !visible(session, &edge.from).await?;
                    next.push(edge.from);
                }
            }
        }
        Ok(found)
    }

    /// Databases and names of the tables that they come from.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.from.iter().map(|(schema, name)| (schema.as_str(), name.as_str()))
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.from.is_empty()
    }

    /// Whether they may come from a table.
    pub(super) fn come_from(&self, map: &TableMap<'_>, ours: bool) -> bool {
        let lower = |name: &[u8]| String::from_utf8_lossy(name).to_lowercase();
        self.any() && (self.others && !ours || self.from.contains(&(lower(map.database), lower(map.name))))
    }

    /// Whether a change of such a table changes others.
    pub(super) fn follow(&self, kind: Kind) -> bool {
        match kind {
            Kind::Insert => false,
            Kind::Update => self.updates,
            Kind::Delete => self.deletes,
        }
    }
}

/// The foreign keys of a table that change its rows.
async fn edges(session: &mut Session, (schema, name): &(String, String)) -> Result<Vec<Edge>> {
    let sql = format!(
        "SELECT UNIQUE_CONSTRAINT_SCHEMA, REFERENCED_TABLE_NAME, DELETE_RULE NOT IN ('RESTRICT', 'NO ACTION'), \
         UPDATE_RULE NOT IN ('RESTRICT', 'NO ACTION') FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE CONSTRAINT_SCHEMA = {} AND TABLE_NAME = {} AND {CASCADES}",
        literal(schema),
        literal(name)
    );
    let rows = session.rows(&sql).await?;
    let edge = |row| Edge {
        from: (text(row, 0), text(row, 1)),
        deletes: integer(row, 2) == Some(1),
        updates: integer(row, 3) == Some(1),
    };
    Ok(rows.iter().map(edge).collect())
}

/// Whether the user sees a table, and with it its foreign keys.
async fn visible(session: &mut Session, (schema, name): &(String, String)) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {}",
        literal(schema),
        literal(name)
    );
    Ok(!session.rows(&sql).await?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_cannot_be_seen_may_be_any() {
        let table = |name: &str| {
            let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0, 4];
            body.extend(b"Shop\0");
            body.push(u8::try_from(name.len()).unwrap());
            body.extend(name.as_bytes());
            body.extend([0, 0, 0]);
            body
        };
        let from = |cascades: &Cascades, name: &str| {
            cascades.come_from(&TableMap::read(&table(name)).unwrap(), name == "lines")
        };
        let one = || HashSet::from([("shop".to_owned(), "orders".to_owned())]);
        let seen = Cascades { from: one(), others: false, deletes: true, updates: false };
        assert!(from(&seen, "Orders") && !from(&seen, "people") && !from(&seen, "lines"));
        assert!(seen.follow(Kind::Delete) && !seen.follow(Kind::Update) && !seen.follow(Kind::Insert));
        let unseen = Cascades { others: true, ..seen };
        assert!(from(&unseen, "people") && !from(&unseen, "lines"));
        assert!(!from(&Cascades { others: true, ..Cascades::default() }, "people"));
    }
}
