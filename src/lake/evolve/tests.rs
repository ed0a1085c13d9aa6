use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use expect_test::{Expect, expect};

use super::compare::{Columns, Evolved};
use super::types::describe;
use super::*;
use crate::lake::schema::{column_properties, to_iceberg};
use crate::table::{SOURCE_COLUMN_ID, SOURCE_TYPE};

fn data_type(name: &str) -> DataType {
    let list = |kind| DataType::List(Arc::new(Field::new("element", kind, true)));
    let fields = |text: &str| {
        let fields = text.split(',').map(|field| {
            let (name, kind) = field.split_once('=').unwrap();
            Field::new(name, data_type(kind.trim_end_matches('?')), kind.ends_with('?'))
        });
        DataType::Struct(fields.collect())
    };
    match name {
        "int" => DataType::Int32,
        "long" => DataType::Int64,
        "float" => DataType::Float32,
        "double" => DataType::Float64,
        "text" => DataType::Utf8,
        "dec10" => DataType::Decimal128(10, 2),
        "dec12" => DataType::Decimal128(12, 2),
        other => {
            if let Some(inner) = other.strip_prefix("list/") {
                list(data_type(inner))
            } else if let Some(inner) = other.strip_prefix("map/") {
                let (key, value) = inner.split_once('/').unwrap();
                let pair = vec![
                    Field::new("key", data_type(key), false),
                    Field::new("value", data_type(value), true),
                ];
                DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(pair.into()), false)), false)
            } else {
                fields(other.trim_matches(['{', '}']))
            }
        }
    }
}

/// `name:type[?][#source id]` a column; types are words, `list/int`, `map/text/int`, `{a=int,b=text?}`.
fn columns(text: &str) -> Schema {
    let field = |word: &str| {
        let (word, id) = word.split_once('#').unwrap_or((word, ""));
        let (name, kind) = word.split_once(':').unwrap();
        let field = Field::new(name, data_type(kind.trim_end_matches('?')), kind.ends_with('?'));
        // One that another engine added here.
        if name == "own" {
            return field;
        }
        let mut metadata =
            HashMap::from([(SOURCE_TYPE.to_owned(), format!("db:{}", kind.trim_end_matches('?')))]);
        if !id.is_empty() {
            metadata.insert(SOURCE_COLUMN_ID.to_owned(), id.to_owned());
        }
        field.with_metadata(metadata)
    };
    Schema::new(text.split_whitespace().map(field).collect::<Vec<_>>())
}

fn plan(
    table: &Columns<'_>,
    wanted: &Schema,
    contract: SchemaContract,
    dropped: DroppedColumns,
) -> Result<Evolved> {
    match contract {
        SchemaContract::Evolve => table.evolve(wanted, dropped),
        SchemaContract::Freeze => table.freeze(wanted),
        contract => table.discard(wanted, contract),
    }
}

fn check_with(contract: SchemaContract, dropped: DroppedColumns, states: &[&str], expected: Expect) {
    let first = columns(states[0]);
    let key = vec!["id".to_owned()];
    let mut schema = to_iceberg(&first, &key).unwrap();
    let mut properties = column_properties(&first, &schema);
    let key_id = schema.field_id_by_name("id").unwrap();
    let mut text = String::new();
    let mut last_id = schema.highest_field_id();
    for state in &states[1..] {
        let wanted = columns(state);
        let key = vec![schema.name_by_field_id(key_id).unwrap().to_owned()];
        let table = Columns { schema: &schema, properties: &properties, last_id, key, bound: HashSet::new() };
        let evolved = match plan(&table, &wanted, contract, dropped) {
            Ok(evolved) => evolved,
            Err(error) => {
                text += &format!("{error:?}\n");
                break;
            }
        };
        let fates = evolved.fates.clone();
        let mut steps = evolved.steps.clone();
        if let Some(evolved) = evolved.schema {
            schema = evolved;
        }
        last_id = last_id.max(schema.highest_field_id());
        properties.extend(evolved.properties);
        if !text.is_empty() {
            text += "--\n";
        }
        for field in schema.as_struct().fields() {
            let mark = if field.required { "" } else { "?" };
            text += &format!("{} {}: {}{mark}\n", field.id, field.name, describe(&field.field_type));
        }
        for (from, fate) in wanted.fields().iter().zip(fates) {
            if fate != Fate::Into(from.name().clone()) {
                text += &format!("> {}: {fate:?}\n", from.name());
            }
        }
        steps.retain(|step| {
            text += &format!("- {step}\n");
            !step.contains("`schema:") && !step.ends_with("NULL from now on")
        });
        // What was followed once is not followed again.
        let key = vec![schema.name_by_field_id(key_id).unwrap().to_owned()];
        let table = Columns { schema: &schema, properties: &properties, last_id, key, bound: HashSet::new() };
        let again = plan(&table, &wanted, contract, dropped).unwrap();
        if contract == SchemaContract::Evolve {
            assert!(again.schema.is_none() && again.properties.is_empty(), "{again:?}");
            assert_eq!(again.steps, Vec::<String>::new());
        }
    }
    expected.assert_eq(&text);
}

fn check(states: &[&str], expected: Expect) {
    check_with(SchemaContract::Evolve, DroppedColumns::Keep, states, expected);
}

#[test]
fn columns_come_widen_and_may_be_null() {
    check(
        &[
            "id:int a:int? b:float? c:dec10? d:text e:list/int?",
            "id:long a:long? b:double? c:dec12? d:text? e:list/long? f:text",
        ],
        expect![[r#"
            1 id: long
            2 a: long?
            3 b: double?
            4 c: decimal(12, 2)?
            5 d: string?
            6 e: list<long>?
            8 f: string?
            - column `id` is widened: int to long
            - column `a` is widened: int to long
            - column `b` is widened: float to double
            - column `c` is widened: decimal(10, 2) to decimal(12, 2)
            - column `d` may be NULL now
            - column `e` is widened: list<int> to list<long>
            - column `f` is new: string, NULL in older rows
        "#]],
    );
}

#[test]
fn narrower_types_fit() {
    check(
        &["id:long a:long? b:dec12? c:text?", "id:int a:int? b:dec10? c:text"],
        expect![[r#"
        1 id: long
        2 a: long?
        3 b: decimal(12, 2)?
        4 c: string?
        - column `id` is int in the source now, it was long
        - column `a` is int in the source now, it was long
        - column `b` is dec10 in the source now, it was dec12
    "#]],
    );
}

#[test]
fn structs_lists_and_maps_grow_within() {
    check(
        &[
            "id:int s:{a=int,b=text}? l:list/{x=int}? m:map/text/int?",
            "id:int s:{c=double?,a=long}? l:list/{x=int,y={z=text}}? m:map/text/long?",
        ],
        expect![[r#"
            1 id: int
            2 s: struct<a: long, b: string, c: double>?
            5 l: list<struct<x: int, y: struct<z: string>>>?
            8 m: map<string, long>?
            - column `s` is widened: struct<a: int, b: string> to struct<a: long, b: string, c: double>
            - column `l` is widened: list<struct<x: int>> to list<struct<x: int, y: struct<z: string>>>
            - column `m` is widened: map<string, int> to map<string, long>
        "#]],
    );
    check(
        &["id:int s:{a=int}? t:text?", "id:int s:{a=int?}? t:text?"],
        expect![[r#"
        1 id: int
        2 s: struct<a: int>?
        4 t: string?
        - fields within column `s` may be NULL now
    "#]],
    );
    check(
        &["id:int m:map/int/int?", "id:int m:map/long/int?"],
        expect![[r#"
        schema: the type changed from map<int, int> to map<long, int>, which is not a widening (column: m)
          hint: to go on without the new values, set `schema: discard_value` or `discard_row`; to keep them, give the column another name in the source, or write to a new `lake_table`
    "#]],
    );
    check(
        &["id:int s:{a=int}?", "id:int s:{a=text}?"],
        expect![[r#"
        schema: the type changed from struct<a: int> to struct<a: string>, which is not a widening (column: s)
          hint: to go on without the new values, set `schema: discard_value` or `discard_row`; to keep them, give the column another name in the source, or write to a new `lake_table`
    "#]],
    );
}

#[test]
fn a_rename_keeps_the_field() {
    check(
        &["id:int#1 a:text?#2 b:text?#3", "id:int#1 b:text?#2 a:text?#3"],
        expect![[r#"
        1 id: int
        2 b: string?
        3 a: string?
        - column `a` is renamed to `b`
        - column `b` is renamed to `a`
    "#]],
    );
    check(
        &["id:int#1 a:text?#2", "key:int#1 a:text?#2"],
        expect![[r#"
        1 key: int
        2 a: string?
        - column `id` is renamed to `key`
    "#]],
    );
}

#[test]
fn the_source_orders_columns() {
    check(
        &["id:int a:text? b:text?", "b:text? c:text? id:int a:text?"],
        expect![[r#"
        3 b: string?
        4 c: string?
        1 id: int
        2 a: string?
        - column `c` is new: string, NULL in older rows
    "#]],
    );
}

#[test]
fn what_is_dropped_stays() {
    check(
        &["id:int#1 a:text#2", "id:int#1"],
        expect![[r#"
        1 id: int
        2 a: string?
        - column `a` is gone from the source: it stays in the lake, NULL from now on
    "#]],
    );
    // By its id it is the same one: left out by `columns` for a while.
    check(
        &["id:int#1 a:text?#2", "id:int#1", "id:int#1 a:text?#2"],
        expect![[r#"
        1 id: int
        2 a: string?
        - column `a` is gone from the source: it stays in the lake, NULL from now on
        --
        1 id: int
        2 a: string?
        - column `a` is there again: rows written in between have NULL in it
    "#]],
    );
}

#[test]
fn what_is_dropped_goes_where_that_is_said() {
    check_with(
        SchemaContract::Evolve,
        DroppedColumns::Drop,
        &["id:int#1 a:text?#2 b:text?#3 own:text?", "id:int#1 b:text?#3"],
        expect![[r#"
            1 id: int
            3 b: string?
            4 own: string?
            - column `a` is gone from the source: it is dropped
        "#]],
    );
}

#[test]
fn a_column_made_anew_is_another_one() {
    check(
        &["id:int#1 a:text?#2", "id:int#1 a:int?#3", "id:int#1 a:int?#4"],
        expect![[r#"
        1 id: int
        3 a: int?
        2 a_dropped_2: string?
        - column `a` was dropped in the source and its name is another column's now: it stays as `a_dropped_2`
        - column `a` is new: int, NULL in older rows
        --
        1 id: int
        4 a: int?
        3 a_dropped_3: int?
        2 a_dropped_2: string?
        - column `a` was dropped in the source and its name is another column's now: it stays as `a_dropped_3`
        - column `a` is new: int, NULL in older rows
    "#]],
    );
    // Its name went to another column.
    check(
        &["id:int#1 a:text?#2 b:text?#3", "id:int#1 b:text?#2"],
        expect![[r#"
        1 id: int
        2 b: string?
        3 b_dropped_3: string?
        - column `a` is renamed to `b`
        - column `b` was dropped in the source and its name is another column's now: it stays as `b_dropped_3`
    "#]],
    );
    // Without ids it is known by a pass that saw it gone.
    check(
        &["id:int a:text?", "id:int", "id:int a:int?"],
        expect![[r#"
        1 id: int
        2 a: string?
        - column `a` is gone from the source: it stays in the lake, NULL from now on
        --
        1 id: int
        3 a: int?
        2 a_dropped_2: string?
        - column `a` was dropped in the source and its name is another column's now: it stays as `a_dropped_2`
        - column `a` is new: int, NULL in older rows
    "#]],
    );
}

#[test]
fn a_table_made_anew_goes_on_by_name() {
    check(
        &["id:int#7.1 a:text?#7.3 b:text?#7.4", "id:int#9.1 a:text?#9.2 b:text?#9.3"],
        expect![[r#"
        1 id: int
        2 a: string?
        3 b: string?
    "#]],
    );
}

#[test]
fn what_would_lose_something_is_refused() {
    check(
        &["id:int a:text?", "id:int a:int?"],
        expect![[r#"
        schema: the type changed from string to int, which is not a widening (column: a)
          hint: to go on without the new values, set `schema: discard_value` or `discard_row`; to keep them, give the column another name in the source, or write to a new `lake_table`
    "#]],
    );
    check(
        &["id:int a:text?", "a:text?"],
        expect![[r#"
        schema: a key column is gone from the source (column: id)
          hint: write to a new `lake_table` with another `primary_key`: no policy lets this pass
    "#]],
    );
    check(
        &["id:int#1 a:text?#2", "a:text?#2 id:int#3"],
        expect![[r#"
        schema: a key column is gone from the source (column: id)
          hint: write to a new `lake_table` with another `primary_key`: no policy lets this pass
    "#]],
    );
}

#[test]
fn a_frozen_schema_stops_at_any_change() {
    let freeze = |states: &[&str], expected| {
        check_with(SchemaContract::Freeze, DroppedColumns::Keep, states, expected);
    };
    freeze(
        &["id:int#1 a:text#2", "b:text?#2 id:long#1 c:int?#3"],
        expect![[r#"
        schema: the source's columns changed, and the stream's schema is frozen: column `a` is renamed to `b`; column `b` may be NULL now; column `id` is widened: int to long; column `c` is new: int, NULL in older rows
          hint: set `schema: evolve` to follow it, or `discard_value` or `discard_row` to go on without
    "#]],
    );
    freeze(
        &["id:int#7.1 a:text?#7.2", "a:text#8.1 id:int#8.2"],
        expect![[r#"
        1 id: int
        2 a: string?
    "#]],
    );
}

#[test]
fn what_has_no_place_is_left_out() {
    let before = "id:int#1 n:int?#2 a:text?#3 t:text?#4 gone:text?#5";
    let after = "id:int#1 n:long?#2 b:text?#3 t:int?#4 new:text?#6";
    let discard = |contract, expected| {
        check_with(contract, DroppedColumns::Keep, &[before, after], expected);
    };
    discard(
        SchemaContract::DiscardValue,
        expect![[r#"
        1 id: int
        2 n: int?
        3 a: string?
        4 t: string?
        5 gone: string?
        > n: IfItFits("n", Int32)
        > b: Into("a")
        > t: LeftOut
        > new: LeftOut
        - column `n` is long in the source and stays int: values that do not fit are left out (`schema: discard_value`)
        - column `a` is called `b` in the source and keeps its name (`schema: discard_value`)
        - column `t` is int in the source and stays string: values that do not fit are left out (`schema: discard_value`)
        - column `new` is new: its values are left out (`schema: discard_value`)
        - column `gone` is gone from the source: NULL from now on
    "#]],
    );
    discard(
        SchemaContract::DiscardRow,
        expect![[r#"
        1 id: int
        2 n: int?
        3 a: string?
        4 t: string?
        5 gone: string?
        > n: IfItFits("n", Int32)
        > b: Into("a")
        > t: LeftOut
        > new: LeftOut
        - column `n` is long in the source and stays int: rows whose value does not fit are left out (`schema: discard_row`)
        - column `a` is called `b` in the source and keeps its name (`schema: discard_row`)
        - column `t` is int in the source and stays string: rows whose value does not fit are left out (`schema: discard_row`)
        - column `new` is new: rows with a value in it are left out (`schema: discard_row`)
        - column `gone` is gone from the source: NULL from now on
    "#]],
    );
    check_with(
        SchemaContract::DiscardRow,
        DroppedColumns::Keep,
        &["id:int#1 a:text#2", "id:int#1"],
        expect![[r#"
            schema: a required column is gone from the source (column: a)
              hint: set `schema: evolve` for a run: the column becomes optional
        "#]],
    );
    check_with(
        SchemaContract::DiscardValue,
        DroppedColumns::Keep,
        &["id:int#1 a:text#2", "id:text#1 a:text#2"],
        expect![[r#"
            schema: the type changed from int to string, which is not a widening (column: id)
              hint: write to a new `lake_table`: no policy lets this pass, for a row without its key has no place
        "#]],
    );
}
