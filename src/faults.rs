//! Named points at which a test can stop the engine: the places where a crash hurts most.
//!
//! In a normal build each is nothing. In test builds `FAILPOINTS=before_commit=return(kill)` kills the
//! process there, and `return(error)` fails there; `2*off->return(kill)` waits for the third time.

use crate::error::Result;

/// The lake's table is made, or its columns follow the source's; no row is read yet.
pub const AFTER_EVOLUTION: &str = "after_evolution";
/// Rows are written to files, the snapshot is not committed.
pub const BEFORE_COMMIT: &str = "before_commit";
/// The snapshot is committed, nobody was told.
pub const AFTER_COMMIT: &str = "after_commit";
/// A change is committed aside and was audited; it is about to be shown, or held back.
pub const BEFORE_PUBLISH: &str = "before_publish";
/// The source is about to hear that rows are durable.
pub const BEFORE_ACKNOWLEDGE: &str = "before_acknowledge";
/// Rows are merged into the target, the transaction is still open.
pub const IN_LOAD_TRANSACTION: &str = "in_load_transaction";
/// The target's transaction is committed, nobody was told.
pub const AFTER_LOAD: &str = "after_load";

/// The tables of a group are at one place and their snapshots are tagged, the checkpoint is not written.
pub const BEFORE_CHECKPOINT: &str = "before_checkpoint";
/// The checkpoint is written, nobody was told.
pub const AFTER_CHECKPOINT: &str = "after_checkpoint";

/// Files are rewritten by maintenance, the snapshot that swaps them in is not committed.
pub const BEFORE_SWAP: &str = "before_swap";
/// Rewritten files are swapped in, nobody was told.
pub const AFTER_SWAP: &str = "after_swap";

/// The crash points of maintenance; a pass does not come by them.
pub const OF_MAINTENANCE: [&str; 2] = [BEFORE_SWAP, AFTER_SWAP];

/// The crash points that every pass with rows comes by; the crash test visits each. [`BEFORE_PUBLISH`] is
/// only on the way of streams with an audit, those around a checkpoint of streams with a group.
pub const ALL: [&str; 6] =
    [AFTER_EVOLUTION, BEFORE_COMMIT, AFTER_COMMIT, BEFORE_ACKNOWLEDGE, IN_LOAD_TRANSACTION, AFTER_LOAD];

/// Whether this build has the points: test builds only.
pub const fn compiled_in() -> bool {
    fail::has_failpoints()
}

/// Reads `FAILPOINTS`, once for a process. In a normal build it does nothing.
pub fn arm() {
    if compiled_in() {
        // Dropping the scenario would disarm the points.
        std::mem::forget(fail::FailScenario::setup());
    }
}

/// Passes, unless a test says otherwise.
pub fn point(name: &'static str) -> Result<()> {
    let _ = name; // unused where the macro expands to nothing
    fail::fail_point!(name, |action| match action.as_deref() {
        Some("kill") => std::process::abort(),
        _ => Err(crate::Error::new(crate::ErrorKind::Transient, format!("stopped at `{name}` by a test"))),
    });
    Ok(())
}
