//! Iceberg's storage and DataFusion's stores on one `object_store`.

/// The object stores that this process has open.
#[derive(Debug, Default)]
pub struct Stores {}
