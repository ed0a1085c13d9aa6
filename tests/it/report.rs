//! What a pass says of itself, field by field.

use std::fmt::Write as _;
use std::fs;

use expect_test::expect_file;
use frazil::sync::StreamReport;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::replace_block;
use crate::fixture::Pipeline;

struct Shop {
    folder: TempDir,
    pipeline: Pipeline,
}

impl Shop {
    /// Three orders in SQLite, to be loaded into a file in that folder.
    fn new(target: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |file: &str| format!("sqlite://{}", folder.path().join(file).display());
        let stream = "main.orders: { change: version, cursor: v }";
        let shop = Self { pipeline: Pipeline::new(&place("shop.db"), &place(target), &[stream]), folder };
        shop.change(
            "create table orders (id integer primary key, v integer not null);
             insert into orders values (1, 1), (2, 2), (3, 3)",
        );
        shop
    }

    fn change(&self, sql: &str) {
        rusqlite::Connection::open(self.folder.path().join("shop.db")).unwrap().execute_batch(sql).unwrap();
    }

    fn report(&self) -> Value {
        self.pipeline.json(&["run"]).remove(0)
    }
}

#[test]
fn a_report_says_from_where_to_where() {
    let shop = Shop::new("dwh.db");
    let first = shop.report();
    assert_eq!(
        [&first["source"], &first["lake_table"], &first["target"], &first["status"], &first["verdict"]],
        ["shop:main.orders", "main.orders", "dwh:orders", "completed", "done"]
    );
    let extract = &first["extract"];
    assert_eq!((&extract["from"], &extract["read"], &extract["rows"]), (&Value::Null, &3.into(), &3.into()));
    assert!(extract["to"].is_string(), "{first}");
    shop.change("update orders set v = 4 where id = 1");
    let next = shop.report();
    assert_eq!(next["extract"]["from"], extract["to"], "{next}");
    assert_ne!(next["extract"]["to"], extract["to"], "{next}");
    assert_eq!(
        (&next["extract"]["read"], &next["load"]["from"]),
        (&1.into(), &first["load"]["to"]),
        "{next}"
    );
    let idle = shop.report();
    assert_eq!((&idle["status"], &idle["verdict"]), (&"completed".into(), &"nothing_to_do".into()), "{idle}");
    assert_eq!(
        (&idle["extract"]["read"], &idle["extract"]["to"]),
        (&0.into(), &next["extract"]["to"]),
        "{idle}"
    );
}

#[test]
fn the_stages_are_the_time_that_it_took() {
    let extract = Shop::new("dwh.db").report()["extract"].take();
    let stages = ["plan", "read", "commit"].map(|stage| extract["stages"][stage].as_f64().unwrap());
    assert!(stages.iter().all(|seconds| *seconds > 0.0), "{extract}");
    let all = extract["seconds"].as_f64().unwrap();
    assert!((stages.iter().sum::<f64>() - all).abs() < 0.001, "{extract}");
}

#[test]
fn what_only_the_lake_has_is_a_pass_in_part() {
    let shop = Shop::new("nowhere/dwh.db");
    let ran = shop.pipeline.run(&["run", "--output", "json"]);
    assert_ne!(ran.code, Some(0));
    let report: Value = serde_json::from_str(ran.stdout.trim()).unwrap();
    assert_eq!((&report["status"], &report["verdict"]), (&"partial".into(), &"failed".into()), "{report}");
    // The lake has it: the next time nothing of it is done.
    let ran = shop.pipeline.run(&["run", "--output", "json"]);
    let report: Value = serde_json::from_str(ran.stdout.trim()).unwrap();
    assert_eq!((&report["status"], &report["verdict"]), (&"failed".into(), &"failed".into()), "{report}");
}

#[test]
fn the_reference_of_the_report_is_its_schema() {
    let schema = schemars::schema_for!(StreamReport).to_value();
    let mut page = fs::read_to_string("docs/reference/report.md").unwrap();
    let parts = [
        ("report", ""),
        ("extract", "ExtractReport"),
        ("stages", "Stages"),
        ("load", "LoadReport"),
        ("error", "ErrorReport"),
    ];
    for (block, part) in parts {
        let part = if part.is_empty() { &schema } else { &schema["$defs"][part] };
        page = replace_block(&page, block, fields(&schema, part).trim_end());
    }
    expect_file!["../../docs/reference/report.md"].assert_eq(&page);
}

fn fields(schema: &Value, part: &Value) -> String {
    let mut rows = "| field | value | meaning |\n|---|---|---|\n".to_owned();
    for (name, property) in part["properties"].as_object().unwrap() {
        let meaning = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        writeln!(rows, "| `{name}` | {} | {meaning} |", value(schema, property)).unwrap();
    }
    rows
}

/// What a field may hold: words, a kind of value, or the part of the report that is described elsewhere.
fn value(schema: &Value, property: &Value) -> String {
    if let Some(either) = property["anyOf"].as_array() {
        return format!("{} or null", value(schema, &either[0]));
    }
    if let Some(name) = property["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        let part = &schema["$defs"][name];
        return if part["properties"].is_object() { "map".to_owned() } else { value(schema, part) };
    }
    let words = property["oneOf"].as_array().or_else(|| property["enum"].as_array());
    if let Some(words) = words {
        let word = |word: &Value| format!("`{}`", word.get("const").unwrap_or(word).as_str().unwrap());
        return words.iter().map(word).collect::<Vec<_>>().join(" ");
    }
    let named = |name: &str| match name {
        "string" => "text".to_owned(),
        "array" => format!("list of {}", value(schema, &property["items"])),
        "object" => "map".to_owned(),
        "boolean" => "`true` `false`".to_owned(),
        "integer" | "number" => "number".to_owned(),
        other => other.to_owned(),
    };
    match &property["type"] {
        Value::Array(names) => {
            names.iter().map(|name| named(name.as_str().unwrap())).collect::<Vec<_>>().join(" or ")
        }
        name => named(name.as_str().unwrap()),
    }
}
