//! Tables whose columns changed between what a position remembers and what the log says.

use super::*;
use crate::connectors::postgres::types::{TypeCatalog, TypeRef};
use crate::table::TableId;

/// Columns by number, name and type.
pub(in super::super) fn relation(columns: &[(i16, &str, u32)]) -> Relation {
    let column = |(number, name, oid): &(i16, &str, u32)| discover::Column {
        number: *number,
        name: (*name).to_owned(),
        of: TypeRef { oid: *oid, modifier: -1, dimensions: 0 },
        written: String::new(),
        not_null: false,
        generated: false,
        identity: false,
        indexed: false,
        added_default: None,
    };
    Relation {
        oid: 7,
        id: TableId::new("public", "t"),
        kind: TableKind::Table,
        columns: columns.iter().map(column).collect(),
        keys: Vec::new(),
        types: TypeCatalog::default(),
        rows: None,
        bytes: None,
        heap: None,
        layout: "a".to_owned(),
        row_security: false,
        readable: true,
    }
}

fn all(relation: &Relation) -> Vec<Wanted> {
    (0..relation.columns.len()).map(|place| Wanted { place, form: Form::Binary, decimal: None }).collect()
}

/// What the log says of a table that looks like this; its first column is the key.
fn message(columns: &[(i16, &str, u32)]) -> pgoutput::Relation {
    let column = |(i, (_, name, oid)): (usize, &(i16, &str, u32))| pgoutput::Column {
        name: (*name).to_owned(),
        in_identity: i == 0,
        oid: *oid,
        modifier: -1,
    };
    pgoutput::Relation { oid: 7, identity: b'd', columns: columns.iter().enumerate().map(column).collect() }
}

const BEFORE: &[(i16, &str, u32)] = &[(1, "id", 23), (2, "a", 25), (3, "b", 25)];

/// Where today's columns are in a message.
fn places(said: &[(i16, &str, u32)], now: &[(i16, &str, u32)]) -> Result<Vec<Option<usize>>, Broken> {
    let (before, now) = (Described::of(&relation(BEFORE), "e"), relation(now));
    Mapping::of(&message(said), &before, &now, &all(&now), &[0]).map(|mapping| mapping.places)
}

#[test]
fn columns_are_found_by_their_numbers() {
    let all_there = vec![Some(0), Some(1), Some(2)];
    assert_eq!(places(BEFORE, BEFORE), Ok(all_there.clone()));
    let renamed = [(1, "id", 23), (2, "z", 25), (3, "b", 25)];
    assert_eq!(places(BEFORE, &renamed), Ok(all_there.clone()));
    assert_eq!(places(&renamed, &renamed), Ok(all_there));
    let swapped = [(1, "id", 23), (2, "b", 25), (3, "a", 25)];
    assert_eq!(places(BEFORE, &swapped), Ok(vec![Some(0), Some(1), Some(2)]));
    let added = [(1, "id", 23), (2, "a", 25), (3, "b", 25), (4, "c", 25)];
    assert_eq!(places(BEFORE, &added), Ok(vec![Some(0), Some(1), Some(2), None]));
    let dropped = [(1, "id", 23), (3, "b", 25)];
    assert_eq!(places(BEFORE, &dropped), Ok(vec![Some(0), Some(2)]));
    // The same name, and another column.
    let made_anew = [(1, "id", 23), (3, "b", 25), (4, "a", 25)];
    assert_eq!(places(BEFORE, &made_anew), Ok(vec![Some(0), Some(2), None]));
    let again = [(1, "id", 23), (2, "a", 25), (4, "b", 25)];
    assert!(places(BEFORE, &again).is_err());
    // Neither as it was nor as it is: who is who cannot be known.
    assert!(places(&[(1, "id", 23), (2, "y", 25), (3, "b", 25)], &renamed).is_err());
}

#[test]
fn an_old_row_has_to_show_the_key() {
    let now = relation(BEFORE);
    let before = Described::of(&now, "e");
    let mut said = message(BEFORE);
    assert!(Mapping::of(&said, &before, &now, &all(&now), &[1]).is_err());
    said.identity = b'f';
    assert!(Mapping::of(&said, &before, &now, &all(&now), &[1]).is_ok());
}

#[test]
fn what_is_in_no_log_is_noticed() {
    let then = relation(BEFORE);
    let before = Described::of(&then, "e");
    let broken =
        |now: &Relation, entry: &str| before.broken(&Described::of(now, entry), now, now.columns.iter());
    assert_eq!(broken(&then, "e"), None);
    assert!(broken(&then, "f").is_some(), "another entry of the publication");
    let mut now = relation(&[(1, "id", 23), (2, "a", 25), (3, "b", 25), (4, "c", 25)]);
    assert_eq!(broken(&now, "e"), None, "a column without values");
    now.layout = "b".to_owned();
    assert!(broken(&now, "e").is_some(), "a column that rows were written anew for");
    let mut now = relation(BEFORE);
    now.layout = "b".to_owned();
    assert_eq!(broken(&now, "e"), None, "rows written anew as they were");
    now.kind = TableKind::PartitionedTable;
    assert!(broken(&now, "e").is_some(), "other partitions");
    assert!(broken(&relation(&[(1, "id", 20), (2, "a", 25), (3, "b", 25)]), "e").is_some(), "another type");
    now.oid = 8;
    assert!(broken(&now, "e").is_some(), "another table");
}

#[test]
fn texts_are_as_a_cast_writes_them() {
    let written = |form, text: &str| {
        let (mut row, wanted) = (Vec::new(), Wanted { place: 0, form, decimal: None });
        wanted.push(Value::Text(text.as_bytes()), &mut row).unwrap();
        String::from_utf8(row[4..].to_vec()).unwrap()
    };
    for (form, text, expected) in [
        (Form::Network, "10.0.0.1", "10.0.0.1/32"),
        (Form::Network, "::1", "::1/128"),
        (Form::Network, "10.0.0.0/8", "10.0.0.0/8"),
        (Form::Bool, "t", "true"),
        (Form::Bool, "f", "false"),
        (Form::Padded, "ab  ", "ab"),
        (Form::Text, "ab  ", "ab  "),
    ] {
        assert_eq!(written(form, text), expected);
    }
}

#[test]
fn numbers_that_are_equal_are_one_key() {
    let wanted = Wanted { place: 0, form: Form::Binary, decimal: Some((12, 2)) };
    let key = |bytes: &[u8]| {
        let mut key = Vec::new();
        wanted.push_key(Value::Binary(bytes), &mut key).unwrap();
        key
    };
    // 1.5 and 1.50: the same digits, with another display scale.
    let (short, long) =
        ([0, 2, 0, 0, 0, 0, 0, 1, 0, 1, 0x13, 0x88], [0, 2, 0, 0, 0, 0, 0, 2, 0, 1, 0x13, 0x88]);
    assert_eq!(key(&short), key(&long));
}
