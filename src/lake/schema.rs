//! Arrow schemas and Iceberg schemas: which type is which, and what may become what.
