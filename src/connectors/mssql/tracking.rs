//! Change Tracking: which rows changed since a version, with deletes.
//!
//! ```text
//! one SNAPSHOT transaction:  is the old version still valid? ──▶ the current version ──▶ changes joined to rows
//! ```
//!
//! The server keeps for each changed key what happened to it, net since any version that it still
//! remembers. A deleted row has no other values than its key. What the server has forgotten (retention,
//! TRUNCATE, a restore) cannot be gone on from: then the table is read whole, and compared.

use crate::clients::mssql::{Session, literal};
use crate::connectors::sql::{MSSQL, Number};
use crate::error::{Error, ErrorKind, Result};

/// A watermark moves on after this many seconds although nothing changed: the server forgets old
/// versions, by default after two days.
pub(super) const HEARTBEAT: i64 = 3600;

/// What the server remembers of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) current: Number,
    /// The oldest version from which one can go on.
    pub(super) oldest: Number,
}

/// The versions, in the order that the documentation asks for: the oldest that is valid, then the
/// current one.
pub(super) fn versions_sql(object: i32) -> String {
    format!(
        "SELECT CHANGE_TRACKING_MIN_VALID_VERSION({object}) AS oldest, CHANGE_TRACKING_CURRENT_VERSION() AS newest"
    )
}

pub(super) async fn versions(session: &mut Session, object: i32) -> Result<Versions> {
    let rows = session.rows(&versions_sql(object)).await?;
    let version = |at: usize| rows.first().and_then(|row| row.try_get::<i64, _>(at).ok().flatten());
    match (version(0), version(1)) {
        (Some(oldest), Some(current)) => Ok(Versions { current: Number(current), oldest: Number(oldest) }),
        _ => Err(Error::new(ErrorKind::Permission, "the server does not say what Change Tracking has")
            .hint("run `GRANT VIEW CHANGE TRACKING ON <table> TO <user>`; is it still switched on?")),
    }
}

impl Versions {
    /// Why one cannot go on after a version; `None` when one can.
    pub(super) fn refuses(self, last: Number) -> Option<&'static str> {
        if last < self.oldest {
            return Some(
                "Change Tracking has forgotten what changed since (retention, TRUNCATE, or it was switched off in between)",
            );
        }
        (last > self.current).then_some("the database is older than it: it was restored")
    }
}

/// A column that is wanted, and how it is selected from an alias.
pub(super) type Selected<'a> = (String, &'a dyn Fn(&str) -> String);

/// The statement that reads the changes after a version.
pub(super) fn changes(table: &str, key: &[String], columns: &[Selected<'_>], after: Number) -> String {
    let pairs = key.iter().map(|name| format!("t.{0} = ct.{0}", MSSQL.ident(name)));
    let keys = Keys {
        from: format!("CHANGETABLE(CHANGES {table}, {})", after.0),
        gone: Some("ct.SYS_CHANGE_OPERATION = N'D'"),
        on: pairs.collect::<Vec<_>>().join(" AND "),
    };
    keys.joined(table, key, columns)
}

/// Where the keys of changed rows come from.
pub(super) struct Keys {
    /// What stands behind FROM, known as `ct`.
    pub(super) from: String,
    /// When a row is known to be deleted.
    pub(super) gone: Option<&'static str>,
    /// Which row `t` of the table a key means.
    pub(super) on: String,
}

impl Keys {
    /// The statement that reads the rows of these keys as they are now, and 1 for those that are gone.
    pub(super) fn joined(&self, table: &str, key: &[String], columns: &[Selected<'_>]) -> String {
        let list: Vec<String> = columns
            .iter()
            .map(|(name, select)| {
                // The key of a deleted row is in the change only.
                let of = if key.contains(name) { "ct" } else { "t" };
                select(&format!("{of}.{}", MSSQL.ident(name)))
            })
            .collect();
        // The join finds no row although the change is none of deletion when the row went since; inside
        // of one snapshot it cannot, and would be a delete all the same.
        let missing = format!("t.{} IS NULL", MSSQL.ident(&key[0]));
        let gone = self.gone.map(|gone| format!("{gone} OR ")).unwrap_or_default();
        format!(
            "SELECT {}, CASE WHEN {gone}{missing} THEN 1 ELSE 0 END FROM {} AS ct LEFT OUTER JOIN {table} AS t ON {}",
            list.join(", "),
            self.from,
            self.on,
        )
    }
}

/// Whether anything changed after a version.
pub(super) async fn any(session: &mut Session, table: &str, after: Number) -> Result<bool> {
    let sql = format!("SELECT TOP (1) 1 FROM CHANGETABLE(CHANGES {table}, {}) AS ct", after.0);
    Ok(!session.rows(&sql).await?.is_empty())
}

/// The database and its recovery fork: after a restore, positions of before mean something else.
pub(super) async fn fork(session: &mut Session) -> Option<String> {
    let name = literal(&session.server().database.clone());
    let sql = format!(
        "SELECT CAST(COALESCE(r.recovery_fork_guid, r.database_guid, d.service_broker_guid) AS nvarchar(36)) \
         FROM sys.databases d LEFT JOIN sys.database_recovery_status r ON r.database_id = d.database_id \
         WHERE d.name = {name}"
    );
    // Not everywhere, and not for everybody; then versions that run backwards are the only sign.
    let rows = session.rows(&sql).await.ok()?;
    rows.first().and_then(|row| row.try_get::<&str, _>(0).ok().flatten()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_version_that_is_gone_or_not_yet_there_cannot_be_gone_on_from() {
        let versions = Versions { current: Number(130), oldest: Number(80) };
        assert!(versions.refuses(Number(79)).unwrap().contains("forgotten"));
        assert_eq!(versions.refuses(Number(80)), None);
        assert_eq!(versions.refuses(Number(130)), None);
        assert!(versions.refuses(Number(131)).unwrap().contains("restored"));
    }

    #[test]
    fn keys_of_deleted_rows_come_from_the_change() {
        let id = |column: &str| column.to_owned();
        let money = |column: &str| format!("CAST({column} AS decimal(19,4))");
        let columns: [Selected<'_>; 3] = [("a]b".into(), &id), ("total".into(), &money), ("id".into(), &id)];
        let sql = changes("[dbo].[t]", &["id".into(), "a]b".into()], &columns, Number(7));
        expect!["SELECT ct.[a]]b], CAST(t.[total] AS decimal(19,4)), ct.[id], CASE WHEN ct.SYS_CHANGE_OPERATION = N'D' OR t.[id] IS NULL THEN 1 ELSE 0 END FROM CHANGETABLE(CHANGES [dbo].[t], 7) AS ct LEFT OUTER JOIN [dbo].[t] AS t ON t.[id] = ct.[id] AND t.[a]]b] = ct.[a]]b]"]
            .assert_eq(&sql);
    }
}
