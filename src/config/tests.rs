//! A test is a file, and what came of it.

use std::path::PathBuf;

use async_trait::async_trait;
use expect_test::{Expect, expect};

use super::*;
use crate::sync::Stream;
use crate::table::TableId;

/// No message may ever hold this.
const SECRET: &str = "hunter2";

/// A shop whose tables are known.
struct Shop;

#[async_trait]
impl TableLister for Shop {
    async fn tables(&self, _: &Connection) -> Result<Vec<TableId>> {
        let names = ["audit_a", "audit_b", "customers", "orders", "secrets"];
        let mut tables: Vec<_> = names.iter().map(|name| TableId::new("public", *name)).collect();
        tables.push(TableId::new("sales", "orders"));
        Ok(tables)
    }
}

fn variable(name: &str) -> Option<String> {
    match name {
        "PASSWORD" => Some(SECRET.to_owned()),
        "MODE" => Some("append".to_owned()),
        "PORTION" => Some("64MiB".to_owned()),
        "NO" => Some("false".to_owned()),
        _ => None,
    }
}

fn outcome(text: &str, overrides: &Overrides, selection: &Selection) -> Result<Resolved> {
    let path = (overrides.from.is_none() || !text.is_empty()).then(|| PathBuf::from("frazil.yaml"));
    let config = Config::parse(path, text, overrides, &variable)?;
    futures::executor::block_on(config.resolve(selection, &Shop))
}

fn show(outcome: Result<Resolved>) -> String {
    match outcome {
        Ok(resolved) => {
            let mut shown: String = resolved.streams.iter().map(show_stream).collect();
            for warning in resolved.warnings {
                shown.push_str(&format!("warning: {warning}\n"));
            }
            shown
        }
        Err(error) => {
            assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
            let hint = error.hint_text().map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
            format!("{}: {error}\n{hint}", error.kind())
        }
    }
}

fn show_stream(stream: &Stream) -> String {
    let Stream { name, source, lake_table, target, settings, .. } = stream;
    let mut shown = format!("{name}: {source:?} -> {lake_table}");
    if let Some(target) = target {
        shown.push_str(&format!(" -> {:?} {}", target.connection, target.table));
    }
    if let Some(mode) = settings.mode {
        shown.push_str(&format!(", {mode:?}"));
    }
    if let Some(cursor) = &settings.cursor {
        shown.push_str(&format!(", cursor {cursor}"));
    }
    if !settings.lag.is_zero() {
        shown.push_str(&format!(", lag {:?}", settings.lag));
    }
    if !settings.primary_key.is_empty() {
        shown.push_str(&format!(", key {:?}", settings.primary_key));
    }
    shown.push('\n');
    assert!(!shown.contains(SECRET), "{shown}");
    shown
}

fn check(text: &str, expected: Expect) {
    expected.assert_eq(&show(outcome(text, &Overrides::default(), &Selection::default())));
}

#[test]
fn a_whole_file_says_what_each_table_does() {
    check(
        r#"
connections:
  shop: postgres://sync:${PASSWORD}@db.example/shop
  dwh: { url: "postgres://loader@dwh.example/main", password: "${PASSWORD}", options: { sslmode: require } }
lake:
  warehouse: s3://lake/warehouse
  options: { s3.region: eu-central-1 }
defaults: { source: shop, target: dwh.raw, mode: merge }
streams:
  public.orders: { cursor: updated_at, lag: 10m, primary_key: id }
  public.customers:
  public.audit_*: { mode: "${MODE}", update_key: id, portion: "${PORTION}", disabled: "${NO}" }
  public.secrets: { disabled: true }
  sales.*: { target: "dwh.{stream_schema}.copy_of_{stream_table}", lake_table: "lake.{stream_schema}_{stream_table}" }
"#,
        expect![[r#"
            public.orders: shop (postgres://sync@db.example/shop) -> public.orders -> dwh (postgres://loader@dwh.example/main) raw.orders, Merge, cursor updated_at, lag 600s, key ["id"]
            public.customers: shop (postgres://sync@db.example/shop) -> public.customers -> dwh (postgres://loader@dwh.example/main) raw.customers, Merge
            public.audit_a: shop (postgres://sync@db.example/shop) -> public.audit_a -> dwh (postgres://loader@dwh.example/main) raw.audit_a, Append, cursor id
            public.audit_b: shop (postgres://sync@db.example/shop) -> public.audit_b -> dwh (postgres://loader@dwh.example/main) raw.audit_b, Append, cursor id
            sales.orders: shop (postgres://sync@db.example/shop) -> lake.sales_orders -> dwh (postgres://loader@dwh.example/main) sales.copy_of_orders, Merge
        "#]],
    );
}

const SHOP: &str = "connections: { shop: 'postgres://sync@db/shop' }\ndefaults: { source: shop }\n";

fn check_streams(streams: &str, expected: Expect) {
    check(&format!("{SHOP}streams:\n{streams}"), expected);
}

#[test]
fn a_table_takes_its_settings_from_its_own_entry_else_from_the_last_pattern() {
    check_streams(
        "  public.*: { mode: append }\n  public.audit_*: { cursor: id }\n  public.orders: {}\n  public.s*: { disabled: true }\n  public.nothing_*: {}\n",
        expect![[r#"
            public.customers: shop (postgres://sync@db/shop) -> public.customers, Append
            public.audit_a: shop (postgres://sync@db/shop) -> public.audit_a, cursor id
            public.audit_b: shop (postgres://sync@db/shop) -> public.audit_b, cursor id
            public.orders: shop (postgres://sync@db/shop) -> public.orders
            warning: `public.nothing_*` matches no table of `shop`
        "#]],
    );
}

#[test]
fn a_pattern_without_a_dot_looks_in_every_schema_and_a_name_without_one_in_the_default() {
    check_streams(
        "  orders: { cursor: id }\n  'ord*': {}\n",
        expect![[r#"
        orders: shop (postgres://sync@db/shop) -> orders, cursor id
        sales.orders: shop (postgres://sync@db/shop) -> sales.orders
    "#]],
    );
}

#[test]
fn what_is_wrong_says_where_and_what_was_meant() {
    for (text, expected) in [
        (
            "conections: {}\n",
            expect![[r#"
            config: unknown key `conections` (file: frazil.yaml:1:1)
              hint: did you mean `connections`?
        "#]],
        ),
        (
            "streams:\n  public.orders:\n    curser: updated_at\n",
            expect![[r#"
            config: unknown key `curser` (key: streams.public.orders, file: frazil.yaml:3:5)
              hint: did you mean `cursor`?
        "#]],
        ),
        (
            "streams:\n  public.orders: { mode: mrege }\n",
            expect![[r#"
            config: unknown mode `mrege` (key: streams.public.orders.mode, file: frazil.yaml:2:26)
              hint: did you mean `merge`?
        "#]],
        ),
        (
            "streams:\n  public.orders: { mode: scd2 }\n",
            expect![[r#"
            config: `mode: scd2` is not in this build yet (key: streams.public.orders.mode, file: frazil.yaml:2:26)
              hint: this build knows `merge`, `append`, `replace`, `upsert`, `incremental`, `full-refresh`
        "#]],
        ),
        (
            "streams:\n  public.orders: { change: log }\n",
            expect![[r#"
            config: `change: log` is not in this build yet (key: streams.public.orders.change, file: frazil.yaml:2:28)
              hint: this build knows `auto`, `timestamp`, `version`, `id`, `full`
        "#]],
        ),
        (
            "streams:\n  public.orders: { deletes: sfot }\n",
            expect![[r#"
            config: unknown value `sfot` (key: streams.public.orders.deletes, file: frazil.yaml:2:29)
              hint: did you mean `soft`?
        "#]],
        ),
        (
            "streams:\n  public.orders: { lag: 10 parsecs }\n",
            expect![[r#"
            config: not a length of time (key: streams.public.orders.lag, file: frazil.yaml:2:25)
              hint: write it like `90s`, `10m` or `1h30m`
        "#]],
        ),
        (
            "streams:\n  public.orders: { columns: { a: b } }\n",
            expect![[r#"
            config: expected a name or a list of names, found a map (key: streams.public.orders.columns, file: frazil.yaml:2:29)
        "#]],
        ),
        (
            "streams:\n  public.orders: [a]\n",
            expect![[r#"
                config: expected a map of settings, found a list (key: streams.public.orders, file: frazil.yaml:2:18)
            "#]],
        ),
        (
            "streams: [public.orders]\n",
            expect![[r#"
            config: expected a map of streams: `public.orders: {}`, found a list (key: streams, file: frazil.yaml:1:10)
        "#]],
        ),
        (
            "defaults: { source: a }\ndefaults: { source: b }\n",
            expect![[r#"
            config: the key `defaults` stands here twice (file: frazil.yaml:2:1)
              hint: keep one of the two; settings of both do not add up
        "#]],
        ),
        (
            "streams:\n  a.b: { cursor: x, update_key: y }\n",
            expect![[r#"
            config: `cursor` is said twice (key: streams.a.b, file: frazil.yaml:2:8)
              hint: one of the two may be written as an alias
        "#]],
        ),
        (
            "streams:\n\ta.b: {}\n",
            expect![[r#"
            config: not valid YAML: tabs disallowed within this context (block indentation) (file: frazil.yaml:2:2)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "streams: { a.b: {\n",
            expect![[r#"
            config: not valid YAML: unclosed bracket '{' (file: frazil.yaml:1:17)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "streams: { a.b: *nowhere }\n",
            expect![[r#"
                config: `*` and a name refer to a YAML anchor that is not there (file: frazil.yaml:1:17)
                  hint: a pattern that begins with `*` needs quotes: `'*_log': {}`
            "#]],
        ),
        (
            "a: 1\n---\nb: 2\n",
            expect![[r#"
            config: the file holds more than one YAML document (file: frazil.yaml:3:1)
              hint: remove `---`
        "#]],
        ),
        (
            "just text\n",
            expect![[r#"
                config: expected a map with `connections`, `lake`, `maintenance`, `defaults` and `streams`, found text (file: frazil.yaml:1:1)
            "#]],
        ),
        (
            "",
            expect![[r#"
            config: the configuration has no streams (file: frazil.yaml)
              hint: add tables under `streams`: `public.orders: {}`, or a pattern: `public.*: {}`
        "#]],
        ),
        (
            "streams:\n  public.orders: {}\n",
            expect![[r#"
            config: the stream has no source (stream: public.orders, file: frazil.yaml:2:18)
              hint: set `source` in it or in `defaults`
        "#]],
        ),
        (
            "streams:\n  public.orders: { source: nowhere }\n",
            expect![[r#"
                config: unknown connection `nowhere` (stream: public.orders, file: frazil.yaml:2:28)
                  hint: name it under `connections`
            "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\ndefaults:\n  source: shpo\nstreams:\n  public.orders: {}\n",
            expect![[r#"
            config: unknown connection `shpo` (stream: public.orders, file: frazil.yaml:3:11)
              hint: did you mean `shop`?
        "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\nstreams:\n  a.b.: { source: shop }\n",
            expect![[r#"
            a.b.: shop (sqlite://a) -> a.b.
        "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\nstreams:\n  'a.[b': { source: shop }\n",
            expect![[r#"
            config: `a.[b` is not a pattern: unclosed character class; missing ']' (stream: a.[b, file: frazil.yaml:3:11)
              hint: `*` is any text, `?` any character, `[ab]` one of these, `{a,b}` either
        "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\nstreams:\n  a.b: { source: shop, target: 'shop.{steam_table}' }\n",
            expect![[r#"
                config: unknown variable `steam_table` (stream: a.b, file: frazil.yaml:3:32)
                  hint: did you mean `stream_table`?
            "#]],
        ),
        (
            "lake: { catalog: filesystem }\n",
            expect![[r#"
            config: the key `warehouse` is missing (key: lake, file: frazil.yaml:1:7)
        "#]],
        ),
        (
            "lake: { warehouse: '' }\n",
            expect![[r#"
            config: `warehouse` is empty
              hint: give a directory or a URL: `./lake`, `s3://bucket/prefix`
        "#]],
        ),
    ] {
        eprintln!("{text}");
        check(text, expected);
    }
}

#[test]
fn secrets_stay_secret_whatever_is_wrong_around_them() {
    for (text, expected) in [
        (
            "connections:\n  shop: postgres://sync:${PASWORD}@db/shop\n",
            expect![[r#"
            config: variable `PASWORD` is not set (key: connections.shop, file: frazil.yaml:2:9)
              hint: set it in the environment or in `.env`, or give a default: `${PASWORD:-…}`
        "#]],
        ),
        (
            "connections:\n  shop: postgres://sync:hunter2@:99999/shop\n",
            expect![[r#"
            config: connection `shop` is not a URL: invalid port number (file: frazil.yaml:2:9)
              hint: write `postgres://user:${PASSWORD}@host/database` or `sqlite:///path/to/file.db`; percent-encode special characters in the password
        "#]],
        ),
        (
            "connections:\n  shop: postgres//sync:hunter2@db/shop\n",
            expect![[r#"
            config: connection `shop` is not a URL: relative URL without a base (file: frazil.yaml:2:9)
              hint: write `postgres://user:${PASSWORD}@host/database` or `sqlite:///path/to/file.db`; percent-encode special characters in the password
        "#]],
        ),
        (
            "connections:\n  shop: [ postgres://sync:hunter2@db/shop ]\n",
            expect![[r#"
            config: expected a URL, or a map with `url`, found a list (key: connections.shop, file: frazil.yaml:2:9)
        "#]],
        ),
        (
            "connections:\n  shop: { url: 'postgres://db', pasword: hunter2 }\n",
            expect![[r#"
            config: unknown key `pasword` (key: connections.shop, file: frazil.yaml:2:33)
              hint: did you mean `password`?
        "#]],
        ),
        (
            "connections:\n  postgres://sync:hunter2@db/shop: {}\n",
            expect![[r#"
            config: the key `url` is missing (key: connections.…, file: frazil.yaml:2:36)
        "#]],
        ),
        (
            "connections:\n  postgres://sync:hunter2@db/shop\n",
            expect![[r#"
            config: expected a map, found text (key: connections, file: frazil.yaml:2:3)
        "#]],
        ),
        (
            "connections:\n  shop: {'postgres://sync:hunter2@db/shop': 1}\n",
            expect![[r#"
            config: unknown key `…` (key: connections.shop, file: frazil.yaml:2:10)
              hint: known: `url`, `password`, `options`
        "#]],
        ),
        (
            "connections:\n  shop: 'postgres://sync:hunter2@db/shop\n",
            expect![[r#"
            config: not valid YAML: invalid indentation in multiline quoted scalar (file: frazil.yaml:3:1)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "connections:\n  shop: {url: 'sqlite:a', password: hunter2}\n",
            expect![[r#"
            config: this address has no place for a password (connection: shop, file: frazil.yaml:2:9)
        "#]],
        ),
        (
            "connections:\n  a: postgres://sync:hunter2@db/shop\n   b: c\n",
            expect![[r#"
            config: not valid YAML: mapping values are not allowed in this context (file: frazil.yaml:3:5)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "defaults: { mode: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.mode, file: frazil.yaml:1:19)
              hint: known: `merge`, `append`, `replace`, `upsert`, `incremental`, `full-refresh`
        "#]],
        ),
        (
            "defaults: { deletes: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.deletes, file: frazil.yaml:1:22)
              hint: known: `hard`, `soft`, `ignore`
        "#]],
        ),
        (
            "defaults: { lag: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.lag, file: frazil.yaml:1:18)
              hint: write it like `90s`, `10m` or `1h30m`
        "#]],
        ),
        (
            "defaults: { values: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.values, file: frazil.yaml:1:21)
        "#]],
        ),
        (
            "defaults: { mode: 'postgres://sync:hunter2@db/shop' }\n",
            expect![[r#"
            config: unknown mode `…` (key: defaults.mode, file: frazil.yaml:1:19)
              hint: known: `merge`, `append`, `replace`, `upsert`, `incremental`, `full-refresh`
        "#]],
        ),
        (
            "defaults: { source: 'mysql:hunter2@db' }\nstreams: { a.b: {} }\n",
            expect![[r#"
                config: unknown connection `…` (stream: a.b, file: frazil.yaml:1:21)
                  hint: name it under `connections`
            "#]],
        ),
        (
            "lake: { warehouse: s3://a, options: { s3.secret-access-key: [hunter2] } }\n",
            expect![[r#"
            config: expected a string, found a list (key: lake.options.s3.secret-access-key, file: frazil.yaml:1:61)
        "#]],
        ),
        (
            "lake: { warehouse: \"${PASSWORD\" }\n",
            expect![[r#"
            config: `${` without a name and `}` (key: lake.warehouse, file: frazil.yaml:1:20)
              hint: write `${NAME}` or `${NAME:-default}`, and `$${` for the characters themselves
        "#]],
        ),
    ] {
        eprintln!("{text}");
        check(text, expected);
    }
}

#[test]
fn flags_go_above_the_file_and_a_source_by_url_needs_none() {
    let url = "postgres://sync:hunter2@db/shop".to_owned();
    let tables = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let show_flags =
        |text: &str, overrides: Overrides| show(outcome(text, &overrides, &Selection::default()));
    let append = StreamEntry { mode: Some("append".parse().unwrap()), ..StreamEntry::default() };

    expect![[r#"
        public.orders: source (postgres://sync@db/shop) -> public.orders -> target (sqlite:///tmp/dwh.db) public_orders, Append
        sales.orders: source (postgres://sync@db/shop) -> sales.orders -> target (sqlite:///tmp/dwh.db) sales_orders, Append
    "#]].assert_eq(&show_flags(
        "",
        Overrides {
            from: Some(url.clone()),
            tables: tables(&["public.orders", "sales.*"]),
            to: Some("sqlite:///tmp/dwh.db".into()),
            target_table: Some("{stream_schema}_{stream_table}".into()),
            stream: append.clone(),
            ..Overrides::default()
        },
    ));
    expect![[r#"
        public.orders: shop (postgres://sync@db/shop) -> public.orders -> shop (postgres://sync@db/shop) copies.orders, Append, cursor id
    "#]].assert_eq(&show_flags(
        &format!("{SHOP}streams: {{ public.orders: {{ mode: replace, cursor: id }} }}\n"),
        Overrides { stream: append, to: Some("shop.copies".into()), ..Overrides::default() },
    ));
    expect![[r#"
        config: `--from` needs at least one `--table`
          hint: `--table public.orders`, or `--table 'public.*'` for all of a schema
    "#]]
    .assert_eq(&show_flags("", Overrides { from: Some(url.clone()), ..Overrides::default() }));
    expect![[r#"
        config: `--target-table` names one table for several streams
          hint: use `{stream_schema}` and `{stream_table}` in it, or run one stream
    "#]]
    .assert_eq(&show_flags(
        "",
        Overrides {
            from: Some(url.clone()),
            tables: tables(&["a.b", "a.c"]),
            to: Some(url),
            target_table: Some("one".into()),
            ..Overrides::default()
        },
    ));
    expect![[r#"
        config: `--table` needs `--from`
          hint: name the source with `--from URL`, or pick streams of the configuration with `--select`
    "#]]
    .assert_eq(&show_flags(SHOP, Overrides { tables: tables(&["a"]), ..Overrides::default() }));
}

#[test]
fn a_selection_takes_and_leaves() {
    let text = format!("{SHOP}streams: {{ 'public.*': {{}}, sales.orders: {{}} }}\n");
    let selected = |select: &[&str], exclude: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let selection = Selection { select: owned(select), exclude: owned(exclude) };
        match outcome(&text, &Overrides::default(), &selection) {
            Ok(resolved) => {
                resolved.streams.iter().map(|stream| stream.name.clone()).collect::<Vec<_>>().join(" ")
            }
            Err(error) => format!("{error} {:?}", error.hint_text()),
        }
    };
    expect!["public.customers public.orders"]
        .assert_eq(&selected(&["public.*"], &["*audit*", "public.secrets"]));
    expect!["public.orders"].assert_eq(&selected(&["orders"], &[]));
    expect!["public.not_listed"].assert_eq(&selected(&["public.not_listed"], &[]));
    expect![[r#"no stream is selected (select: sales.ordres) Some("did you mean `sales.orders`?")"#]]
        .assert_eq(&selected(&["sales.ordres"], &[]));
}

#[test]
fn two_streams_never_write_one_table() {
    check_streams(
        "  public.orders: { lake_table: a.b }\n  public.customers: { lake_table: a.b }\n",
        expect![[r#"
            config: two streams write the lake table `a.b` (stream: public.customers)
              hint: give one of them another `lake_table`
        "#]],
    );
    check_streams(
        "  public.orders: { target: shop }\n  sales.orders: { target: shop }\n",
        expect![[r#"
        config: two streams write the table `orders` of `shop` (stream: sales.orders)
          hint: keep schemas apart with `target: dwh.{stream_schema}`, or name the table
    "#]],
    );
}

#[test]
fn a_lake_in_the_file_is_beside_the_file() {
    let lake = |text: &str, overrides: &Overrides| {
        Config::parse(Some("conf/frazil.yaml".into()), text, overrides, &variable)
            .unwrap()
            .lake()
            .warehouse
            .clone()
    };
    assert_eq!(lake("lake: { warehouse: ./lake }", &Overrides::default()), "conf/./lake");
    assert_eq!(lake("lake: { warehouse: /lake }", &Overrides::default()), "/lake");
    assert_eq!(lake("lake: { warehouse: 's3://lake' }", &Overrides::default()), "s3://lake");
    assert_eq!(lake("", &Overrides { lake: Some("./here".into()), ..Overrides::default() }), "./here");
}

#[test]
fn the_schema_knows_every_key_and_no_more() {
    let schema = schema();
    assert_eq!(schema.pointer("/$defs/StreamEntry/additionalProperties"), Some(&false.into()));
    assert!(schema.pointer("/$defs/StreamEntry/properties/where").is_some());
    assert!(schema.pointer("/$defs/StreamEntry/properties/update_key").is_some());
}
