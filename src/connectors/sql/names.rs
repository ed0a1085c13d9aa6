//! What names tell: what a person meant who misspelt one, and which column is set by every change.

use crate::error::{Error, ErrorKind};
use crate::table::TableId;

/// A name is suggested when it is at least this similar (Jaro-Winkler, 1 is equal).
const SIMILAR: f64 = 0.85;
/// More suggestions than this help nobody.
const SUGGESTIONS: usize = 3;

/// A column that is not there, with the one that was probably meant.
pub fn missing_column<'a>(
    table: &TableId,
    columns: impl Iterator<Item = &'a str> + Clone,
    name: &str,
) -> Error {
    let error =
        Error::new(ErrorKind::Config, "column does not exist").with("column", name).with("table", table);
    let near =
        columns.clone().map(|column| (similarity(column, name), column)).max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((similar, near)) if similar >= SIMILAR => error.hint(format!("did you mean `{near}`?")),
        _ => error.hint(format!("it has {}", columns.collect::<Vec<_>>().join(", "))),
    }
}

/// A table that is not there, with those of similar names; `otherwise` is the hint when there is none.
pub fn missing_table(table: &TableId, there: impl Iterator<Item = TableId>, otherwise: &str) -> Error {
    let mut near: Vec<(f64, String)> = there
        .map(|id| (similarity(&table.name, &id.name), id.to_string()))
        .filter(|(similar, _)| *similar >= SIMILAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let error = Error::new(ErrorKind::Config, "table does not exist").with("table", table);
    if near.is_empty() {
        return error.hint(otherwise);
    }
    let names: Vec<_> = near.into_iter().take(SUGGESTIONS).map(|(_, name)| format!("`{name}`")).collect();
    error.hint(format!("did you mean {}?", names.join(" or ")))
}

fn similarity(one: &str, other: &str) -> f64 {
    strsim::jaro_winkler(&one.to_lowercase(), &other.to_lowercase())
}

/// How surely a name says that the column is set by every change: lower is surer.
pub fn named_for_change(name: &str) -> Option<u8> {
    /// Without underscores.
    const SURE: [&str; 15] = [
        "updatedat",
        "updateddate",
        "updatetime",
        "modifiedat",
        "modifieddate",
        "modifiedon",
        "modifytime",
        "lastmodified",
        "lastmodifieddate",
        "lastupdate",
        "lastupdated",
        "changedat",
        "dateupdated",
        "datemodified",
        "writedate",
    ];
    let name = name.to_ascii_lowercase().replace('_', "");
    if SURE.contains(&name.as_str()) {
        return Some(0);
    }
    if name.contains("update") || name.contains("modif") {
        return Some(1);
    }
    (name.contains("changed") || name == "mtime").then_some(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_what_was_meant() {
        let orders = TableId::new("sales", "orders");
        let columns = ["id", "updated_at"];
        let hint = |name| missing_column(&orders, columns.into_iter(), name).hint_text().unwrap().to_owned();
        assert_eq!(hint("Updatedat"), "did you mean `updated_at`?");
        assert_eq!(hint("price"), "it has id, updated_at");
        let there = || [TableId::new("sales", "orders"), TableId::new("x", "orders_old")].into_iter();
        let hint =
            |name| missing_table(&TableId::bare(name), there(), "none").hint_text().unwrap().to_owned();
        assert_eq!(hint("Order"), "did you mean `sales.orders` or `x.orders_old`?");
        assert_eq!(hint("people"), "none");
    }

    #[test]
    fn names_say_how_surely_a_column_follows_changes() {
        for (name, surely) in [
            ("updated_at", Some(0)),
            ("LastModifiedDate", Some(0)),
            ("write_date", Some(0)),
            ("row_update_ts", Some(1)),
            ("mtime", Some(2)),
            ("created_at", None),
        ] {
            assert_eq!(named_for_change(name), surely, "{name}");
        }
    }
}
