//! Finds the places of rows by key, and hides them: position deletes.
//!
//! The cost follows the delta: data files are pruned by partition and by the bounds of their keys,
//! row groups by statistics and bloom filters, and of what remains only key columns are read.
