//! The user's file as types, and what it means: streams with every setting resolved.
