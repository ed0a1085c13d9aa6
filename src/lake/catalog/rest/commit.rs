//! The swap, made by the server. Its answer may get lost; what the table shows then decides.
//!
//! ```text
//! POST ─┬─ 200 ────────────────────────────────▶ committed
//!       ├─ 4xx ─▶ overtaken, as the table shows? conflict : refused. Nothing changed
//!       └─ 409, 429, 5xx, no answer ─▶ load ─┬─ our snapshot is there ────▶ committed
//!             ▲                              ├─ a requirement is broken ──▶ conflict
//!             └───────── pause ──────────────┴─ neither, or no answer
//! ```
//!
//! Two things that no requirement tells are looked at here, as the other catalogs do: a snapshot number that
//! another branch took (servers refuse it, each with a status of its own), and a tag on a snapshot that is
//! to go (servers let the tag go with it, so it is looked for just before).
//!
//! To send a commit again is safe: its requirements name the state that it was made on, and once it
//! has landed they do not hold any more. When time runs out in between, the error says that the
//! outcome is not known, and what the commit names stays where it is.

use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use iceberg::{TableRequirement, TableUpdate};

use super::client::Outcome;
use super::wire;
use super::{Call, Open, errors};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::catalog::files::check_current;
use crate::lake::storage::iceberg_error;

pub(super) async fn commit(
    open: &Open,
    base: &Table,
    requirements: &[TableRequirement],
    updates: &[TableUpdate],
) -> Result<Table> {
    let id = base.identifier();
    let namespace = id.namespace().clone().inner();
    let identifier = wire::Identifier { namespace: namespace.clone(), name: id.name().to_owned() };
    let path = open.server.table_path(&namespace, id.name());
    if updates.iter().any(|update| matches!(update, TableUpdate::RemoveSnapshots { .. })) {
        let newest = open.load(&namespace, id.name()).await?.ok_or_else(dropped)?;
        check_current(newest.metadata(), updates)?;
    }
    let call = Call::post("commit a table", path, &wire::Commit { identifier, requirements, updates })?;
    let mut tries = open.server.client.tries();
    // Whether some try may have landed without our knowing.
    let mut unsure = false;
    loop {
        let outcome = match open.server.client.once(&call).await {
            Ok(outcome) => outcome,
            // We could not even log in.
            Err(error) => return Err(unknown_if(unsure, error)),
        };
        let (error, retry_after) = match outcome {
            Outcome::Done(body) => {
                let loaded = serde_json::from_slice::<wire::Loaded>(&body);
                let loaded = loaded.map_err(|source| errors::garbled("commit a table", &source));
                match loaded.and_then(|loaded| open.table(id, loaded)) {
                    Ok(table) => return Ok(table),
                    Err(error) => {
                        unsure = true;
                        (error, None)
                    }
                }
            }
            Outcome::Lost(error) => {
                unsure = true;
                (error, None)
            }
            Outcome::Unsent(error) => (error, None),
            Outcome::Refused { status, said, retry_after } => {
                let error = errors::refused("commit a table", status, &said);
                match status.as_u16() {
                    409 | 429 => {}
                    408 | 425 | 500.. => unsure = true,
                    404 => return Err(unknown_if(unsure, dropped().because(error))),
                    // Servers have no name of their own for a number that another branch took.
                    400 | 422 if !unsure => {
                        if let Ok(Some(newest)) = open.load(&namespace, id.name()).await {
                            check_current(newest.metadata(), updates)?;
                        }
                        return Err(error);
                    }
                    _ => return Err(unknown_if(unsure, error)),
                }
                (error, retry_after)
            }
        };
        let error = match open.load(&namespace, id.name()).await {
            Ok(Some(newest)) if newest.metadata().uuid() == base.metadata().uuid() => {
                if landed(updates, newest.metadata(), unsure) {
                    return Ok(newest);
                }
                for requirement in requirements {
                    requirement.check(Some(newest.metadata())).map_err(iceberg_error)?;
                }
                check_current(newest.metadata(), updates)?;
                error
            }
            Ok(_) => return Err(dropped()),
            // The catalog is away: whether it comes back in time decides.
            Err(look) => look.because(error),
        };
        tries.pause(error, retry_after).await.map_err(|error| unknown_if(unsure, error))?;
    }
}

/// Whether the table shows what was asked for. A snapshot's id is ours alone and decides by itself;
/// other changes are only looked at when a try may have landed.
fn landed(updates: &[TableUpdate], now: &TableMetadata, unsure: bool) -> bool {
    let mut snapshots = updates.iter().filter_map(|update| match update {
        TableUpdate::AddSnapshot { snapshot } => Some(snapshot.snapshot_id()),
        _ => None,
    });
    match snapshots.next() {
        Some(first) => std::iter::once(first).chain(snapshots).all(|id| now.snapshot_by_id(id).is_some()),
        None => unsure && updates.iter().all(|update| shows(update, now)),
    }
}

fn shows(update: &TableUpdate, now: &TableMetadata) -> bool {
    use TableUpdate as U;
    match update {
        U::SetProperties { updates } => {
            updates.iter().all(|(name, value)| now.properties().get(name) == Some(value))
        }
        U::RemoveProperties { removals } => removals.iter().all(|name| !now.properties().contains_key(name)),
        U::SetSnapshotRef { ref_name, reference } => {
            now.snapshot_for_ref(ref_name).is_some_and(|at| at.snapshot_id() == reference.snapshot_id)
        }
        U::RemoveSnapshotRef { ref_name } => now.snapshot_for_ref(ref_name).is_none(),
        U::RemoveSnapshots { snapshot_ids } => {
            snapshot_ids.iter().all(|id| now.snapshot_by_id(*id).is_none())
        }
        U::AddSchema { schema } => now.schemas_iter().any(|known| known.as_struct() == schema.as_struct()),
        // -1 is the schema that this commit adds.
        U::SetCurrentSchema { schema_id } => *schema_id == -1 || now.current_schema_id() == *schema_id,
        U::UpgradeFormatVersion { format_version } => now.format_version() >= *format_version,
        U::SetLocation { location } => now.location() == location,
        // Sent again, it is either refused by the requirements or changes nothing.
        _ => false,
    }
}

fn unknown_if(unsure: bool, error: Error) -> Error {
    if !unsure {
        return error;
    }
    Error::new(ErrorKind::Transient, "whether the catalog made the commit is not known")
        .hint("run again: the next run goes on from what the table holds; no file was deleted")
        .because(error)
}

fn dropped() -> Error {
    Error::new(ErrorKind::Conflict, "the table was dropped or made anew")
}
