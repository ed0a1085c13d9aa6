//! Which version of the Iceberg format a table has, and how it gets to a newer one.
//!
//! Version 2 is what every reader knows, and the default. Version 3 is asked for table by table; a
//! table that is there is raised by one metadata commit, its files stay as they are. There is no way
//! back: a reader of version 2 would show rows that deletion vectors hide.

use iceberg::TableUpdate;
use iceberg::spec::{PrimitiveType, Schema as IcebergSchema, Type};

use super::LakeTable;
use crate::error::{Error, ErrorKind, Result};
use crate::table::FormatVersion;

/// The same in the library's words.
pub(super) fn of(version: FormatVersion) -> iceberg::spec::FormatVersion {
    match version {
        FormatVersion::V2 => iceberg::spec::FormatVersion::V2,
        FormatVersion::V3 => iceberg::spec::FormatVersion::V3,
    }
}

/// Whether deletes are deletion vectors, and rows have ids.
pub(super) fn is_v3(metadata: &iceberg::spec::TableMetadata) -> bool {
    metadata.format_version() >= iceberg::spec::FormatVersion::V3
}

/// Types that came with a later version of the format are refused, not rounded.
pub(super) fn refuse_newer_types(schema: &IcebergSchema, version: FormatVersion) -> Result<()> {
    if version >= FormatVersion::V3 {
        return Ok(());
    }
    match schema.as_struct().fields().iter().find(|field| has_nanoseconds(&field.field_type)) {
        None => Ok(()),
        Some(field) => Err(Error::new(
            ErrorKind::Unsupported,
            "nanoseconds cannot be kept in the lake: Iceberg v2 ends at microseconds",
        )
        .with("column", &field.name)
        .hint("set `format_version: 3`, leave the column out with `columns`, or read it as text")),
    }
}

fn has_nanoseconds(kind: &Type) -> bool {
    match kind {
        Type::Primitive(kind) => matches!(kind, PrimitiveType::TimestampNs | PrimitiveType::TimestamptzNs),
        Type::Struct(fields) => fields.fields().iter().any(|field| has_nanoseconds(&field.field_type)),
        Type::List(list) => has_nanoseconds(&list.element_field.field_type),
        Type::Map(map) => {
            has_nanoseconds(&map.key_field.field_type) || has_nanoseconds(&map.value_field.field_type)
        }
    }
}

impl LakeTable {
    /// The version of the format. A table of another engine in version 1 is written to as version 2.
    pub fn format_version(&self) -> FormatVersion {
        if is_v3(self.table.metadata()) { FormatVersion::V3 } else { FormatVersion::V2 }
    }

    /// Raises a table of another engine in version 1 to version 2, before it is written to: in version 1
    /// rows cannot be hidden, and nobody knows in which order files came.
    pub(super) async fn leave_version_1(&mut self) -> Result<()> {
        if self.table.metadata().format_version() > iceberg::spec::FormatVersion::V1 {
            return Ok(());
        }
        let updates = vec![TableUpdate::UpgradeFormatVersion { format_version: of(FormatVersion::V2) }];
        self.table = self.catalog.commit(&self.table, self.unmoved(), updates).await?;
        Ok(())
    }

    /// Raises the table to a version of the format, and says so if that was something to do. Files stay
    /// as they are; position deletes go on to hide rows until a commit touches their data file.
    /// [`Config`](ErrorKind::Config) when the table is beyond that version.
    pub async fn raise_format(&mut self, to: FormatVersion) -> Result<Option<String>> {
        let now = self.format_version();
        if to < now {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the lake table is in format version {}, and there is no way back to {}",
                    now.number(),
                    to.number()
                ),
            )
            .with("table", &self.id)
            .hint(format!("set `format_version: {}`, or write to a new `lake_table`", now.number())));
        }
        if to == now {
            return Ok(None);
        }
        let updates = vec![TableUpdate::UpgradeFormatVersion { format_version: of(to) }];
        self.table = self
            .catalog
            .commit(&self.table, self.unmoved(), updates)
            .await
            .map_err(|error| error.with("table", &self.id))?;
        Ok(Some(format!("the lake table is raised to format version {}", to.number())))
    }
}
