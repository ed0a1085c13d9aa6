//! Tables that go, and tables that get another name.

use super::client::{self, Call, Outcome};
use super::{Open, errors, levels, no_table, wire};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

/// `false` when there is no such table. Its files stay.
pub(super) async fn drop_table(open: &Open, id: &TableId) -> Result<bool> {
    let namespace = levels(id);
    let path = open.server.table_path(&namespace, &id.name);
    let call = Call::delete("drop a table", path).query("purgeRequested", "false");
    let mut tries = open.server.client.tries();
    // Whether some try may have been done without our knowing.
    let mut unsure = false;
    loop {
        let (error, retry_after) = match open.server.client.once(&call).await? {
            Outcome::Done(_) => return Ok(true),
            Outcome::Lost(error) | Outcome::Unsent(error) => (error, None),
            Outcome::Refused { status, .. } if status.as_u16() == 404 => return Ok(unsure),
            Outcome::Refused { status, said, retry_after } => {
                let error = errors::refused("drop a table", status, &said);
                if !client::may_pass(status) {
                    return Err(error);
                }
                (error, retry_after)
            }
        };
        unsure = true;
        tries.pause(error, retry_after).await?;
    }
}

pub(super) async fn rename_table(open: &Open, from: &TableId, to: &TableId) -> Result<()> {
    let Some(table) = open.load(&levels(from), &from.name).await? else { return Err(no_table(from)) };
    let named = |id: &TableId| wire::Identifier { namespace: levels(id), name: id.name.clone() };
    let body = wire::Rename { source: named(from), destination: named(to) };
    let call = Call::post("rename a table", "tables/rename", &body)?;
    let mut tries = open.server.client.tries();
    let mut namespace_made = false;
    loop {
        let (error, retry_after) = match open.server.client.once(&call).await? {
            Outcome::Done(_) => return Ok(()),
            Outcome::Lost(error) | Outcome::Unsent(error) => (error, None),
            Outcome::Refused { status, said, retry_after } => {
                let error = errors::refused("rename a table", status, &said);
                match status.as_u16() {
                    404 if said.kind.starts_with("NoSuchNamespace") && !namespace_made => {
                        open.server.create_namespace(&levels(to)).await?;
                        namespace_made = true;
                        continue;
                    }
                    // It may be ours by now, if an answer got lost.
                    404 | 409 => (error, retry_after),
                    _ if client::may_pass(status) => (error, retry_after),
                    _ => return Err(error),
                }
            }
        };
        match open.load(&levels(to), &to.name).await? {
            Some(there) if there.metadata().uuid() == table.metadata().uuid() => return Ok(()),
            Some(_) => {
                return Err(Error::new(ErrorKind::Conflict, "the new name is taken").with("to", to));
            }
            None if error.kind() == ErrorKind::Config => return Err(no_table(from)),
            None => tries.pause(error, retry_after).await?,
        }
    }
}
