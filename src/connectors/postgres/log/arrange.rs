//! What `frazil setup` and `frazil teardown` would do about the log: publications and slots of our own.

use super::super::discover::Relation;
use super::publication::{self, Published};
use super::{needs, slot};
use crate::clients::postgres::Session;
use crate::connectors::sql::POSTGRES;
use crate::error::Result;
use crate::source::{Arrangement, Goal, ReadRequest};

/// What is to be done, and what need not be.
pub(in super::super) async fn arrange(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
    goal: Goal,
) -> Result<Arrangement> {
    let about = needs::look(session, relation).await?;
    let own = slot::own_name(request, &about.database);
    // What is to be done about publications is for the primary.
    let standby = session.server().standby;
    let mut arrangement = Arrangement::default();
    let publish = |arrangement: &mut Arrangement, statement: String| match standby {
        true => arrangement.suggestions.push(format!("on the primary, run `{statement}`")),
        false => arrangement.statements.push(statement),
    };
    let published = publication::look(session, &own, relation).await?;
    if let Goal::Teardown { .. } = goal {
        if let Some(slot) = slot::look(session, &own).await? {
            slot.check_free()?;
            arrangement.statements.push(format!("SELECT pg_drop_replication_slot('{own}')"));
        }
        if published != Published::Missing {
            publish(&mut arrangement, format!("DROP PUBLICATION {}", POSTGRES.ident(&own)));
        }
        if arrangement.statements.is_empty() && arrangement.suggestions.is_empty() {
            arrangement.notes.push("there is no slot and no publication of ours".to_owned());
        }
        return Ok(arrangement);
    }
    match (&request.log.publication, published) {
        (Some(name), _) => {
            let published = publication::look(session, name, relation).await?;
            match publication::refusal(name, &published, relation) {
                Some(error) => arrangement.suggestions.extend(error.hint_text().map(str::to_owned)),
                None => arrangement.notes.push(format!("the publication `{name}` is there")),
            }
        }
        (None, Published::Missing) => publish(&mut arrangement, publication::creation(&own, relation)),
        (None, Published::Without) => publish(&mut arrangement, publication::addition(&own, relation)),
        (None, _) => arrangement.notes.push(format!("the publication `{own}` is there")),
    }
    arrangement.notes.push("the replication slot is made by the first run".to_owned());
    // The table's identity and the server's settings are for somebody who knows what else they cost.
    let problems = about.problems(session, relation, request);
    arrangement
        .suggestions
        .extend(problems.iter().filter_map(|problem| problem.hint_text().map(str::to_owned)));
    Ok(arrangement)
}
