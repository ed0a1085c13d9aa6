//! The columns that a request wants: how they are selected and how they are decoded.

use std::sync::Arc;

use super::discover::Relation;
use super::rows::Shape;
use crate::connectors::sql::{POSTGRES, Select, Unfit};
use crate::error::Result;
use crate::source::ReadRequest;

/// The rows of a relation, as the request wants them.
pub(super) fn select(relation: &Relation, request: &ReadRequest) -> Result<(Shape, Select)> {
    let columns = match &request.columns {
        None => relation.columns.iter().collect(),
        Some(names) => names.iter().map(|name| relation.named(name)).collect::<Result<Vec<_>>>()?,
    };
    for name in request.values.types.keys() {
        relation.named(name)?;
    }
    let (mut list, mut codecs, mut fields) = (Vec::new(), Vec::new(), Vec::new());
    for column in &columns {
        let (conversion, field) = relation.travels(column, &request.values)?;
        let name = POSTGRES.ident(&column.name);
        list.push(conversion.cast.map_or(name.clone(), |cast| format!("{name}::{cast}")));
        codecs.push(conversion.codec);
        fields.push(field);
    }
    let schema = Arc::new(arrow::datatypes::Schema::new(fields));
    let shape = Shape {
        unfit: Unfit::of(&schema, request),
        schema,
        replaced: codecs.iter().map(|_| 0.into()).collect(),
        codecs,
        policy: request.values.out_of_range,
        batch_rows: request.batch_rows,
        batch_bytes: request.batch_bytes,
    };
    let what = format!("SELECT {} FROM {}", list.join(", "), relation.quoted());
    let conditions = request.filter.iter().cloned().collect();
    Ok((shape, Select { what, conditions }))
}
