//! Flags, verbs, output.
