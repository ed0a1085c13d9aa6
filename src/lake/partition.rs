//! Partition transforms in the words of Iceberg: `day(created_at)`, `bucket(16, id)`, `region`.

use std::str::FromStr;

use iceberg::spec::{Schema, Transform, UnboundPartitionSpec};

use super::storage::iceberg_error;
use crate::error::{Error, ErrorKind, Result};

/// A partition spec of these terms, bound to the columns of `schema`.
pub(super) fn spec(schema: &Schema, terms: &[String]) -> Result<UnboundPartitionSpec> {
    let mut builder = UnboundPartitionSpec::builder();
    let mut names = Vec::new();
    for term in terms {
        let (transform, column) = parse(term)?;
        let field = schema.field_by_name(column).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("`{term}` names a column that does not exist"))
                .with("column", column)
        })?;
        transform.result_type(&field.field_type).map_err(|source| {
            Error::new(
                ErrorKind::Config,
                format!("`{term}` does not fit a column of type {}", field.field_type),
            )
            .with("column", column)
            .because(source)
        })?;
        let name = match transform {
            Transform::Identity => column.to_owned(),
            Transform::Bucket(_) => format!("{column}_bucket"),
            Transform::Truncate(_) => format!("{column}_trunc"),
            other => format!("{column}_{other}"),
        };
        if names.contains(&name) {
            return Err(
                Error::new(ErrorKind::Config, format!("`{term}` repeats a partition")).with("column", column)
            );
        }
        builder = builder.add_partition_field(field.id, &name, transform).map_err(iceberg_error)?;
        names.push(name);
    }
    Ok(builder.build())
}

/// `bucket(16, id)` → the transform and the column.
fn parse(term: &str) -> Result<(Transform, &str)> {
    let wrong = || {
        Error::new(ErrorKind::Config, format!("`{term}` is not a partition transform"))
            .hint("write a column, or year(c), month(c), day(c), hour(c), bucket(N, c), truncate(W, c)")
    };
    let text = term.trim();
    let Some((name, arguments)) = text.split_once('(') else {
        return if text.is_empty() { Err(wrong()) } else { Ok((Transform::Identity, text)) };
    };
    let arguments = arguments.strip_suffix(')').ok_or_else(wrong)?.trim();
    let name = name.trim().to_ascii_lowercase();
    let (transform, column) = match name.as_str() {
        "bucket" | "truncate" => {
            let (number, column) = arguments.split_once(',').ok_or_else(wrong)?;
            let number = number.trim().parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
            (Transform::from_str(&format!("{name}[{number}]")).map_err(|_| wrong())?, column.trim())
        }
        "identity" => (Transform::Identity, arguments),
        // The plural is Iceberg's function name, the singular its transform's.
        "year" | "years" => (Transform::Year, arguments),
        "month" | "months" => (Transform::Month, arguments),
        "day" | "days" => (Transform::Day, arguments),
        "hour" | "hours" => (Transform::Hour, arguments),
        _ => return Err(wrong()),
    };
    if column.is_empty() { Err(wrong()) } else { Ok((transform, column)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_in_the_words_of_iceberg() {
        for (term, transform, column) in [
            ("region", Transform::Identity, "region"),
            ("day(created_at)", Transform::Day, "created_at"),
            ("days( created_at )", Transform::Day, "created_at"),
            ("bucket(16, id)", Transform::Bucket(16), "id"),
            ("Truncate(4,name)", Transform::Truncate(4), "name"),
        ] {
            assert_eq!(parse(term).unwrap(), (transform, column));
        }
        for wrong in ["", "day(", "bucket(id)", "bucket(0, id)", "week(x)", "day()"] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::Config, "{wrong}");
        }
    }
}
