//! The publication of a stream: which tables the server decodes for it.
//!
//! One of our own has the one table. One of the user's must have it whole: all columns, all rows, all kinds
//! of changes; what it left out would be missing without a word.

use tokio_postgres::types::Type;

use super::super::discover::Relation;
use super::replica;
use crate::clients::postgres::Session;
use crate::connectors::sql::POSTGRES;
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableKind;

/// What a publication has of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Published {
    /// There is no such publication.
    Missing,
    /// It is there, and the table is not in it.
    Without,
    /// The table is in it but for something.
    Partly(String),
    /// It has all of the table, by this entry in the catalog.
    Whole { entry: String },
}

/// Looks at a publication.
pub(super) async fn look(session: &Session, name: &str, relation: &Relation) -> Result<Published> {
    let sql = "
        SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,
               coalesce((SELECT 'r' || pr.oid FROM pg_publication_rel pr
                         WHERE pr.prpubid = p.oid AND pr.prrelid = $2), 'p' || p.oid),
               t.tablename IS NOT NULL, to_jsonb(t)->>'rowfilter',
               (SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_attribute a
                WHERE a.attrelid = $2 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                  AND NOT coalesce(to_jsonb(t)->'attnames' ? a.attname::text, true))
        FROM pg_publication p
        LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace) ON c.oid = $2
        LEFT JOIN pg_publication_tables t
               ON t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname
        WHERE p.pubname = $1";
    let rows = session.query_typed(sql, &[(&name, Type::TEXT), (&relation.oid, Type::OID)]).await?;
    let Some(row) = rows.first() else { return Ok(Published::Missing) };
    if relation.kind == TableKind::PartitionedTable && !row.get::<_, bool>(1) {
        return Ok(Published::Partly("`publish_via_partition_root`".to_owned()));
    }
    if !row.get::<_, bool>(3) {
        return Ok(Published::Without);
    }
    let missing = if !row.get::<_, bool>(0) {
        Some("some kinds of changes".to_owned())
    } else if row.get::<_, Option<&str>>(4).is_some() {
        Some("the rows that do not meet its condition".to_owned())
    } else {
        row.get::<_, Option<&str>>(5).map(|columns| format!("the columns {columns}"))
    };
    Ok(match missing {
        Some(what) => Published::Partly(what),
        None => Published::Whole { entry: row.get(2) },
    })
}

/// The statement that makes a publication of a table.
pub(super) fn creation(name: &str, relation: &Relation) -> String {
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
        POSTGRES.ident(name),
        relation.quoted()
    )
}

/// The statement that puts a table into a publication.
pub(super) fn addition(name: &str, relation: &Relation) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", POSTGRES.ident(name), relation.quoted())
}

/// Makes our own publication what it has to be; `true` when it was changed.
pub(super) async fn ensure(session: &Session, name: &str, relation: &Relation) -> Result<bool> {
    let statement = match look(session, name, relation).await? {
        Published::Whole { .. } => return Ok(false),
        Published::Missing => creation(name, relation),
        Published::Without => addition(name, relation),
        Published::Partly(what) => return Err(partly(name, &what)),
    };
    if session.server().standby {
        return Err(replica::missing_publication(&statement));
    }
    session.batch_execute(&statement).await.map_err(|error| {
        let error = Error::from(error);
        if error.kind() != ErrorKind::Permission {
            return error;
        }
        Error::new(ErrorKind::Permission, "the user may not make a publication of the table")
            .hint(format!("let its owner run `{statement}`, and name it: `publication: {name}`"))
    })?;
    Ok(true)
}

/// Why a publication of the user's cannot be read by.
pub(super) fn refusal(name: &str, published: &Published, relation: &Relation) -> Option<Error> {
    let error = |message: String| Error::new(ErrorKind::Config, message);
    Some(match published {
        Published::Whole { .. } => return None,
        Published::Missing => error(format!("there is no publication `{name}`"))
            .hint(format!("run `{}`", creation(name, relation))),
        Published::Without => error(format!("the publication `{name}` does not have the table"))
            .hint(format!("run `{}`", addition(name, relation))),
        Published::Partly(what) => partly(name, what),
    })
}

fn partly(name: &str, what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("the publication `{name}` leaves out {what}"))
        .hint("name a publication that has the whole table, or none: then the stream makes its own")
}
