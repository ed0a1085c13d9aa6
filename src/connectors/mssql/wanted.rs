//! The columns that a request wants, and the shape of the batches that they make.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

use super::codec::Codec;
use super::discover::Relation;
use super::rows::Shape;
use super::types::Conversion;
use crate::connectors::sql::Unfit;
use crate::error::Result;
use crate::source::ReadRequest;
use crate::table::OP_COLUMN;

/// A column that was asked for: its name, how it travels, its field.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) conversion: Conversion,
    pub(super) field: Field,
}

/// The columns that a request asks for, or all.
pub(super) fn wanted(relation: &Relation, request: &ReadRequest) -> Result<Vec<Wanted>> {
    for name in request.values.types.keys() {
        relation.named(name)?;
    }
    let names: Vec<&str> = match &request.columns {
        None => relation.columns.iter().map(|column| column.name.as_str()).collect(),
        Some(names) => names.iter().map(String::as_str).collect(),
    };
    names
        .into_iter()
        .map(|name| {
            let column = relation.named(name)?;
            let (conversion, field) = relation.travels(column, &request.values)?;
            Ok(Wanted { name: name.to_owned(), conversion, field })
        })
        .collect()
}

/// The same batches with what happened to each row; of a deleted one all but the key is NULL.
pub(super) fn with_op(shape: &Shape, request: &ReadRequest) -> Shape {
    let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
    let mut fields: Vec<Field> = shape.schema.fields().iter().map(nullable).collect();
    fields.push(Field::new(OP_COLUMN, DataType::Int8, false));
    let codecs: Vec<_> = shape.codecs.iter().copied().chain([Codec::Op]).collect();
    let schema = Arc::new(Schema::new(fields));
    Shape {
        unfit: Unfit::of(&schema, request),
        schema,
        replaced: codecs.iter().map(|_| 0.into()).collect(),
        codecs,
        policy: shape.policy,
        batch_rows: shape.batch_rows,
        batch_bytes: shape.batch_bytes,
    }
}
