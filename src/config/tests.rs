//! A test is a file, and what came of it.

mod wrong;

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
          hint: keep schemas apart with `target: dwh.{stream_schema}`, or say under `shared` which of them goes first
    "#]],
    );
    check_streams(
        "  public.orders: { change: log, slot: one }\n  public.customers: { change: log, slot: one }\n",
        expect![[r#"
            config: two streams read the slot `one` (stream: public.customers, other stream: public.orders)
              hint: give each its own, or leave `slot` out: then it makes one
        "#]],
    );
    check_streams(
        "  public.orders: {}\n  public.orders__dead_letters: {}\n",
        expect![[r#"
        config: the lake table `public.orders__dead_letters` is kept for what the stream `public.orders` notes
          hint: give the stream that writes it another `lake_table`
    "#]],
    );
}

/// Each group: its streams, and whether these are all.
fn groups_of(streams: &str, select: &[&str]) -> Vec<(String, Vec<String>, bool)> {
    let text = format!(
        "connections:\n  shop: postgres://db.example/shop\ndefaults: {{ source: shop, change: log }}\nstreams:\n{streams}"
    );
    let select = select.iter().map(|name| (*name).to_owned()).collect();
    let resolved =
        outcome(&text, &Overrides::default(), &Selection { select, ..Selection::default() }).unwrap();
    let mut groups: Vec<_> = resolved
        .streams
        .iter()
        .filter_map(|stream| stream.group.as_ref())
        .map(|group| (group.name.clone(), group.streams.iter().cloned().collect(), group.whole))
        .collect();
    groups.dedup();
    groups
}

#[test]
fn a_group_knows_its_streams_and_whether_these_are_all() {
    let both =
        "  public.orders: { group: shop }\n  public.customers: { group: shop }\n  public.secrets: {}\n";
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let shop = |streams: &[&str], whole| vec![("shop".to_owned(), names(streams), whole)];
    let all = shop(&["public.customers", "public.orders"], true);
    assert_eq!(groups_of(both, &[]), all);
    assert_eq!(groups_of(both, &["public.orders", "public.customers"]), all);
    assert_eq!(groups_of(both, &["public.[oc]*"]), all);
    assert_eq!(groups_of(both, &["public.orders"]), shop(&["public.orders"], false));
    assert_eq!(groups_of(both, &["public.secrets"]), []);
    let pattern = "  public.audit_*: { group: shop }\n";
    assert_eq!(groups_of(pattern, &[]), shop(&["public.audit_a", "public.audit_b"], true));
    // Whether the pattern has more tables is not known: they are not listed for a run of two.
    let two = ["public.audit_a", "public.audit_b"];
    assert_eq!(groups_of(pattern, &two), shop(&two, false));
}

#[test]
fn a_group_keeps_as_many_checkpoints_as_is_said() {
    let text = |groups: &str| {
        format!(
            "connections:\n  shop: postgres://db.example/shop\ndefaults: {{ source: shop, change: log }}\n\
             streams:\n  public.orders: {{ group: shop }}\n  public.customers: {{ group: other }}\n{groups}"
        )
    };
    let keep = |groups: &str| -> Vec<u64> {
        let resolved = outcome(&text(groups), &Overrides::default(), &Selection::default()).unwrap();
        resolved.streams.iter().filter_map(|stream| Some(stream.group.as_ref()?.keep)).collect()
    };
    assert_eq!(keep(""), [100, 100]);
    assert_eq!(keep("groups: { shop: { keep: 3 }, other: {} }\n"), [3, 100]);
    check(
        &text("groups:\n  shpo: { keep: 3 }\n"),
        expect![[r#"
            config: no stream is in the group `shpo` (file: frazil.yaml:8:9)
              hint: did you mean `shop`?
        "#]],
    );
    check(
        &text("groups:\n  shop: { keep: 10001 }\n"),
        expect![[r#"
            config: a group cannot keep so many checkpoints (file: frazil.yaml:8:9)
              hint: `keep` is 10000 at most: every commit writes a tag for each
        "#]],
    );
}

#[test]
fn what_cannot_be_in_a_group_is_refused() {
    let streams = |streams: &str| {
        format!(
            "connections:\n  shop: postgres://db.example/shop\n  other: postgres://db.example/other\n  my: mariadb://db.example/shop\n\
             defaults: {{ source: shop, change: log, group: g }}\nstreams:\n{streams}"
        )
    };
    check(
        &streams("  public.orders: { change: timestamp }\n"),
        expect![[r#"
        config: `group` needs `change: log` (change: timestamp, stream: public.orders, file: frazil.yaml:5:47)
          hint: only a log says which changes were committed together: set `change: log`, or leave `group` out
    "#]],
    );
    check(
        &streams("  public.orders: {}\n  public.customers: { source: other }\n"),
        expect![[r#"
        config: the group `g` has streams of two connections, `shop` and `other` (stream: public.customers, file: frazil.yaml:5:47)
          hint: each database has a log of its own, so that no place is in both: make two groups
    "#]],
    );
    check(
        &streams("  orders: { source: my }\n"),
        expect![[r#"
        config: `group` is for `change: log` of Postgres (connection: my, stream: orders, file: frazil.yaml:5:47)
          hint: a pass through the log of other databases cannot end at a place that was chosen: leave `group` out
    "#]],
    );
    check(
        &streams("  public.orders: { mode: append }\n"),
        expect![[r#"
        config: `group` needs `mode: merge` (stream: public.orders, file: frazil.yaml:5:47)
          hint: a checkpoint shows tables as they were: leave `mode` or `group` out
    "#]],
    );
    check(
        &streams("  public.orders: { group: 'a b' }\n"),
        expect![[r#"
        config: a group cannot be named so (stream: public.orders, file: frazil.yaml:7:27)
          hint: begin with a letter, go on with letters, digits and `_`: `shop`
    "#]],
    );
    check(
        &streams("  public.orders: { lake_table: main.g__checkpoints }\n"),
        expect![[r#"
        config: the lake table `g__checkpoints` is kept for what the stream `public.orders` notes
          hint: give the stream that writes it another `lake_table`
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
