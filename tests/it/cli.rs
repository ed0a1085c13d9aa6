//! The program as a user meets it: what it says, and how it ends.

use std::fs;
use std::process::{Command, Stdio};

use expect_test::{Expect, expect, expect_file};
use tempfile::TempDir;

/// No output may ever hold this.
const SECRET: &str = "hunter2";

/// Runs the program in an empty folder with these files.
struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        Self(folder)
    }

    /// Everything that the program says, and its exit code.
    fn run(&self, arguments: &[&str]) -> String {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_frazil"))
            .args(arguments)
            .current_dir(self.0.path())
            .env_clear()
            .env("XDG_STATE_HOME", self.0.path().join("state"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!format!("{stdout}{stderr}").contains(SECRET), "{arguments:?}\n{stdout}{stderr}");
        let code = output.status.code().map_or("killed".to_owned(), |code| code.to_string());
        let quoted = |text: &str, mark: &str| {
            text.lines().map(|line| format!("{mark} {line}").trim_end().to_owned() + "\n").collect::<String>()
        };
        format!("{}{}exit {code}\n", quoted(&stdout, "|"), quoted(&stderr, "!"))
            .replace(&self.0.path().display().to_string(), "HERE")
    }
}

fn check(file: &str, arguments: &[&str], expected: Expect) {
    expected.assert_eq(&Folder::new(&[("frazil.yaml", file)]).run(arguments));
}

const SHOP: &str =
    "connections: { shop: 'postgres://sync:hunter2@db.example/shop' }\ndefaults: { source: shop }\n";

#[test]
fn without_a_configuration_it_says_what_to_do() {
    expect![[r#"
        ! error: there is no configuration here: neither `frazil.yaml` nor `frazil.yml`
        !   hint: write one with `frazil init URL`, name one with `--config`, or run without: `frazil run --from URL --table public.orders --lake ./lake`
        exit 2
    "#]].assert_eq(&Folder::new(&[]).run(&["run"]));
    expect![[r#"
        ! error: cannot read the configuration: No such file or directory (os error 2) (file: nowhere.yaml)
        exit 2
    "#]]
    .assert_eq(&Folder::new(&[]).run(&["run", "--config", "nowhere.yaml"]));
    expect![[r#"
        ! nothing has run yet (HERE/state/frazil/history.db)
        exit 0
    "#]]
    .assert_eq(&Folder::new(&[]).run(&["history"]));
    expect![[r#"
        ! error: `--from` needs at least one `--table`
        !   hint: `--table public.orders`, or `--table 'public.*'` for all of a schema
        exit 2
    "#]]
    .assert_eq(&Folder::new(&[]).run(&["run", "--from", "sqlite:shop.db"]));
    expect![[r#"
        ! error: there is no configuration here: neither `frazil.yaml` nor `frazil.yml`
        !   hint: write one with `frazil init URL`, name one with `--config`, or run without: `frazil run --from URL --table public.orders --lake ./lake`
        exit 2
    "#]].assert_eq(&Folder::new(&[]).run(&["run", "--table", "orders"]));
}

#[test]
fn a_wrong_configuration_ends_with_two() {
    let with = |streams: &str| format!("{SHOP}streams:\n  public.orders: {streams}\n");
    check(
        &with("{ curser: id }"),
        &["run"],
        expect![[r#"
        ! error: unknown key `curser` (key: streams.public.orders, file: frazil.yaml:4:20)
        !   hint: did you mean `cursor`?
        exit 2
    "#]],
    );
    check(
        &with("{ mode: log }"),
        &["check"],
        expect![[r#"
            ! error: unknown mode `log` (key: streams.public.orders.mode, file: frazil.yaml:4:26)
            !   hint: known: `merge`, `append`, `replace`, `scd2`, `upsert`, `incremental`, `full-refresh`
            exit 2
        "#]],
    );
    check(
        &with("{ mode: snapshot }"),
        &["plan"],
        expect![[r#"
            ! error: `mode: snapshot` is not in this build yet (key: streams.public.orders.mode, file: frazil.yaml:4:26)
            !   hint: this build knows `merge`, `append`, `replace`, `scd2`, `upsert`, `incremental`, `full-refresh`
            exit 2
        "#]],
    );
    check(
        &with("{ source: shp }"),
        &["sync"],
        expect![[r#"
        ! error: unknown connection `shp` (stream: public.orders, file: frazil.yaml:4:28)
        !   hint: did you mean `shop`?
        exit 2
    "#]],
    );
    check(
        &with("{ lag: ${LAG} }"),
        &["status"],
        expect![[r#"
        ! error: not valid YAML: while parsing a flow mapping, did not find expected ',' or '}' (file: frazil.yaml:4:26)
        !   hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        exit 2
    "#]],
    );
    check(
        &with("{}\n  public.orders: {}"),
        &["load"],
        expect![[r#"
        ! error: the key `public.orders` stands here twice (file: frazil.yaml:5:3)
        !   hint: keep one of the two; settings of both do not add up
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["load"],
        expect![[r#"
        ! error: no stream has a target
        !   hint: set `target` in `defaults` or in a stream, or give `--to`
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--select", "public.ordres"],
        expect![[r#"
        ! error: no stream is selected (select: public.ordres)
        !   hint: did you mean `public.orders`?
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--mode", "mrege"],
        expect![[r#"
        ! error: invalid value 'mrege' for '--mode <MODE>': unknown mode `mrege`: did you mean `merge`?
        !
        ! For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--memory", "lots"],
        expect![[r#"
        ! error: invalid value 'lots' for '--memory <SIZE>': not a number of bytes: write it like `256MiB` or `1GiB`
        !
        ! For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--memory", "1MiB"],
        expect![[r#"
        ! error: a memory budget of 1 MiB is too small
        !   hint: give at least `--memory 128MiB`
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--parallel", "0"],
        expect![[r#"
        ! error: invalid value '0' for '--parallel <N>': a number from 1 upwards
        !
        ! For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--deletes", "sfot"],
        expect![[r#"
        ! error: invalid value 'sfot' for '--deletes <WHAT>': unknown variant `sfot`, expected one of `hard`, `soft`, `ignore`
        !
        ! For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--select", "a[b"],
        expect![[r#"
        ! error: `a[b` is not a pattern: unclosed character class; missing ']'
        !   hint: `*` is any text, `?` any character, `[ab]` one of these, `{a,b}` either
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["rnu"],
        expect![[r#"
            ! error: unrecognized subcommand 'rnu'
            !
            ! Usage: frazil [OPTIONS] <COMMAND>
            !
            ! For more information, try '--help'.
            exit 2
        "#]],
    );
    check(
        &with("{}"),
        &["init", "postgres://sync:hunter2@db.example/shop"],
        expect![[r#"
        ! error: the configuration is there already (file: frazil.yaml)
        !   hint: `--force` replaces it, `--config FILE` writes another one
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["snapshots", "public.orders"],
        expect![[r#"
        ! error: the lake has no such table (table: public.orders)
        !   hint: the lake is empty: run `frazil sync` first
        exit 2
    "#]],
    );
    check(
        &with("{}"),
        &["run", "--output", "csv"],
        expect![[r#"
        ! error: reports are text or JSON, not tables of rows
        exit 2
    "#]],
    );
    check(
        "connections: { shop: 'oracle://sync:hunter2@db/shop' }\nstreams: { a.b: { source: shop } }\n",
        &["run"],
        expect![[r#"
            | failed     a.b  after 0.00 s
            !            error: no connector for `oracle://` (connection: shop)
            !              hint: this build knows postgres, postgresql, sqlite, mssql, sqlserver, mysql, mariadb
            exit 2
        "#]],
    );
}

#[test]
fn a_secret_never_shows() {
    let url = "postgres://sync:hunter2@127.0.0.1:1/shop";
    let odd = "postgres://sync:hunter2/@#@127.0.0.1:1/shop";
    let file = format!(
        "connections: {{ shop: '{url}' }}\ndefaults: {{ source: shop, target: shop.b }}\nstreams: {{ public.orders: {{}}, 'a.*': {{}} }}\n"
    );
    let environment =
        [("FRAZIL_FROM", url), ("FRAZIL_TO", url), ("FRAZIL_LOG", "trace"), ("PGPASSWORD", SECRET)];
    let commands: &[&[&str]] = &[
        &["run"],
        &["check"],
        &["plan"],
        &["discover"],
        &["status"],
        &["discover", url],
        &["discover", odd],
        &["init", url, "--force"],
        &["init", odd, "--force"],
        &["run", url],
        &["run", "--from", url, "--table", "a"],
        &["run", "--from", odd, "--table", "a"],
        &["run", "--from", "a", "--to", url, "--table", "a", "--target-table", "b.c"],
        &["run", "--to", url, "--select", "public.orders"],
        &["run", "--select", url],
        &["run", "--select", "public.orders", "--lake", url],
        &["run", "--select", "public.orders", "--catalog", url],
        &["query", url],
        &["query", "select 1", "--as-of", url],
        &["snapshots", url],
        &["run", "--memory", url],
        &["run", "--mode", url],
        &["run", "--lake-option", url],
        &["--config", url, "run"],
        &["history", url],
        &["completely", url],
    ];
    for arguments in commands {
        for arguments in [arguments.to_vec(), [*arguments, &["--verbose", "--output", "json"]].concat()] {
            let folder = Folder::new(&[("frazil.yaml", &file), (".env", "PASSWORD=hunter2\n")]);
            folder.run(&arguments);
        }
    }
    let folder = Folder::new(&[("frazil.yaml", &file)]);
    for arguments in [&["run", "--help"][..], &["discover"], &["run", "--table", "a"], &["init", "--force"]] {
        folder.run_with(arguments, &environment);
    }
    // A `.env` that cannot be read is not repeated either.
    let folder = Folder::new(&[("frazil.yaml", &file), (".env", "PASSWORD='hunter2\nthis is hunter2")]);
    expect![[r#"
        ! error: cannot read the variables: a line is not `NAME=value` (file: .env)
        !   hint: quote values that hold spaces, `#`, `$` or quotes: NAME='value'
        exit 2
    "#]]
    .assert_eq(&folder.run(&["check"]));
}

#[test]
fn flags_are_above_the_environment_and_that_is_above_the_file() {
    let file = format!("{SHOP}streams: {{ a.b: {{ mode: append }} }}\n");
    let folder = Folder::new(&[("frazil.yaml", &file)]);
    expect![[r#"
        ! error: invalid value 'nonsense' for '--mode <MODE>': unknown mode `nonsense`: known: `merge`, `append`, `replace`, `scd2`, `upsert`, `incremental`, `full-refresh`
        !
        ! For more information, try '--help'.
        exit 2
    "#]].assert_eq(&folder.run_with(&["run"], &[("FRAZIL_MODE", "nonsense")]));
    expect![[r#"
        ! error: invalid value 'other' for '--mode <MODE>': unknown mode `other`: known: `merge`, `append`, `replace`, `scd2`, `upsert`, `incremental`, `full-refresh`
        !
        ! For more information, try '--help'.
        exit 2
    "#]].assert_eq(&folder.run_with(&["run", "--mode", "other"], &[("FRAZIL_MODE", "nonsense")]));
    expect![[r#"
        ! error: cannot read the configuration: No such file or directory (os error 2) (file: elsewhere.yaml)
        exit 2
    "#]]
    .assert_eq(&folder.run_with(&["run"], &[("FRAZIL_CONFIG", "elsewhere.yaml")]));
}

/// A shop in SQLite, and the program beside it.
fn shop() -> Folder {
    let folder = Folder::new(&[]);
    let db = rusqlite::Connection::open(folder.0.path().join("shop.db")).unwrap();
    db.execute_batch(
        "create table orders (id integer primary key, customer text not null, updated_at timestamp not null);
         create index orders_by_change on orders (updated_at);
         insert into orders values (1, 'ann', '2026-01-01 00:00:00'), (2, 'bob', '2026-01-02 00:00:00');",
    )
    .unwrap();
    folder
}

#[test]
fn a_shop_goes_through_all_verbs() {
    let shop = shop();
    let ends = |arguments: &[&str], code: &str| {
        let said = shop.run(arguments);
        assert!(said.ends_with(&format!("exit {code}\n")), "{arguments:?}\n{said}");
        said
    };
    expect![[r#"
        ! wrote frazil.yaml with 1 streams
        ! next: frazil check
        exit 0
    "#]]
    .assert_eq(&ends(&["init", "sqlite:shop.db"], "0"));
    ends(&["init", "sqlite:shop.db"], "2");
    expect![[r#"
        # What frazil moves, from where to where. `frazil schema` prints the JSON Schema for editors,
        # `frazil check` says what each stream would do, `frazil run` does it.

        connections:
          shop: sqlite:shop.db
          # dwh: postgres://loader:${DWH_PASSWORD}@host/warehouse

        # Iceberg tables, for every engine that reads them.
        lake:
          warehouse: ./lake

        defaults:
          source: shop
          # target: dwh.raw        # connection.schema to load into; without it rows stay in the lake
          # mode: merge            # merge | append | replace; by itself: merge where there is a primary key
          # change: auto           # auto | timestamp | version | id | full
          # lag: 10m               # read again what lies this far behind the newest change

        # `public.*: {}` takes all tables of a schema; a table's own entry, or the last pattern, decides.
        streams:
          # about 2 rows; 4.1 kB; key id; cursor updated_at (timestamp, indexed)
          main.orders: {}
    "#]]
    .assert_eq(&fs::read_to_string(shop.0.path().join("frazil.yaml")).unwrap());
    expect![[r#"
        | table        kind   rows  size    key  cursor
        | main.orders  table     2  4.1 kB  id   updated_at (timestamp, indexed), id (id, indexed)
        exit 0
    "#]]
    .assert_eq(&ends(&["discover"], "0"));
    expect![[r#"
        | ok      lake ./lake: can be written
        | ok      main.orders  merge by id, timestamp on updated_at (indexed), about 2 rows
        |         note: changes by `updated_at` (by its name, indexed)
        |         note: deletes leave no trace in a cursor; `change: full` sees them
        |         note: first read: everything
        |         column: id INTEGER: whole numbers only; a run stops at any other value, unless `values.types` says text
        |         column: updated_at timestamp: timestamps like 2024-01-31 12:34:56 only, up to microseconds, made UTC; a run stops at any other value, unless `values.types` says text
        exit 0
    "#]].assert_eq(&ends(&["check"], "0"));
    expect![[r#"
        | main.orders
        |   read    the whole table: about 2 rows, 4.1 kB; timestamp on updated_at (indexed)
        |           SELECT "id", "customer", "updated_at", "updated_at" FROM main."orders"
        |   note    changes by `updated_at` (by its name, indexed)
        |   note    deletes leave no trace in a cursor; `change: full` sees them
        |   note    first read: everything
        |   lake    create table main.orders (merge by id)
        |             id Int64 not null
        |             customer Utf8 not null
        |             updated_at Timestamp(µs) not null
        exit 0
    "#]]
    .assert_eq(&ends(&["plan"], "0"));
    assert!(!shop.0.path().join("lake/main").exists(), "neither `check` nor `plan` makes a table");
    ends(&["status"], "0");

    let to = ["--to", "sqlite:dwh.db"];
    let said = ends(&[&["run", "--output", "json"], &to[..]].concat(), "0");
    let report = said.lines().find_map(|line| line.strip_prefix("| ")).unwrap();
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    assert_eq!(report["stream"], "main.orders");
    assert_eq!(report["verdict"], "done");
    assert_eq!(report["extract"]["rows"], 2);
    assert_eq!(report["load"]["upserted"], 2);
    ends(&[&["run"], &to[..]].concat(), "0");
    ends(&[&["run", "--exit-code"], &to[..]].concat(), "4");
    ends(&["run", "--failed"], "0");

    expect![[r#"
        | id,customer
        | 1,ann
        | 2,bob
        exit 0
    "#]]
    .assert_eq(&ends(&["query", "--output", "csv", "select id, customer from orders order by id"], "0"));
    expect![[r#"
        | {"newest":"2026-01-02T00:00:00","n":null}
        exit 0
    "#]]
    .assert_eq(&ends(
        &["query", "--output", "json", "select max(updated_at) as newest, null as n from orders"],
        "0",
    ));
    expect![[r#"
        ! error: there is no table `where` in the lake
        !   hint: the lake has `main.orders`
        exit 2
    "#]]
    .assert_eq(&ends(&["query", "select from where"], "2"));
    expect![[r#"
        ! error: there is no table `ordres` in the lake
        !   hint: did you mean `main.orders`?
        exit 2
    "#]]
    .assert_eq(&ends(&["query", "select * from ordres"], "2"));
    assert!(ends(&["state", "show"], "0").contains(r#""column": "updated_at""#));
    ends(&["history"], "0");
    ends(&["snapshots", "orders"], "0");
    let status = ends(&["status", "--output", "json", "--to", "sqlite:dwh.db"], "0");
    assert!(status.contains(r#""behind":0"#), "{status}");
}

#[test]
fn the_schema_is_json() {
    let folder = Folder::new(&[]);
    let output =
        Command::new(env!("CARGO_BIN_EXE_frazil")).arg("schema").current_dir(&folder.0).output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["title"], "frazil configuration");
    assert!(output.stderr.is_empty());
}

#[test]
fn the_reference_of_the_command_line_is_its_help() {
    let page = "docs/reference/cli.md";
    expect_file!["../../docs/reference/cli.md"].assert_eq(&with_block(
        page,
        "help",
        frazil::cli::help().trim_end(),
    ));
}

#[test]
fn the_reference_of_the_configuration_is_its_schema() {
    let schema = frazil::config::schema();
    let keys = |place: &str| {
        let object = schema.pointer(place).unwrap();
        let mut rows = "| key | value | meaning |\n|---|---|---|\n".to_owned();
        for (key, property) in object["properties"].as_object().unwrap() {
            rows.push_str(&format!(
                "| `{key}` | {} | {} |\n",
                values(&schema, property),
                meaning(&schema, property)
            ));
        }
        rows
    };
    let mut page = fs::read_to_string("docs/reference/config.md").unwrap();
    for (block, place) in [
        ("file", ""),
        ("lake", "/$defs/LakeEntry"),
        ("maintenance", "/$defs/MaintenanceSettings"),
        ("streams", "/$defs/StreamEntry"),
        ("groups", "/$defs/GroupEntry"),
        ("shared", "/$defs/SharedEntry"),
        ("values", "/$defs/Values"),
        ("audit", "/$defs/AuditEntry"),
        ("schedule", "/$defs/ScheduleSettings"),
    ] {
        page = replace_block(&page, block, keys(place).trim_end());
    }
    expect_file!["../../docs/reference/config.md"].assert_eq(&page);
}

/// What a key may hold: the words of an enumeration, else the type.
fn values(schema: &serde_json::Value, property: &serde_json::Value) -> String {
    let property = resolved(schema, property);
    if let Some(words) = property["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word.as_str().map_or_else(|| word.to_string(), str::to_owned)))
            .collect::<Vec<_>>()
            .join(" ");
    }
    if let Some(words) = property["oneOf"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word["const"].as_str().unwrap()))
            .collect::<Vec<_>>()
            .join(" ");
    }
    if let Some(example) = property["examples"].get(0) {
        return format!("`{}`", example.as_str().unwrap());
    }
    if property["anyOf"].is_array() {
        let description = property["description"].as_str().unwrap_or_default();
        return match description {
            text if text.starts_with("One name") => "name or list",
            text if text.starts_with("`auto`") => "`auto` `off` or map",
            text if text.starts_with("Five fields") => "`*/5 * * * *` or map",
            text if text.starts_with("Who wins") => "policy or map",
            text if text.starts_with("A number of rows") => "number or share",
            text if text.starts_with("A part of a whole") => "share",
            _ => "URL or map",
        }
        .to_owned();
    }
    match property["type"].as_str().or_else(|| property["type"][0].as_str()).unwrap() {
        "string" => "text",
        "boolean" => "`true` `false`",
        "integer" => "number",
        "object" => "map",
        "array" => "list of maps",
        other => panic!("no word for {other}"),
    }
    .to_owned()
}

fn meaning(schema: &serde_json::Value, property: &serde_json::Value) -> String {
    let own = property["description"].as_str();
    let text = own
        .or_else(|| resolved(schema, property)["description"].as_str())
        .expect("every key says what it means");
    text.replace('\n', " ").replace('|', "\\|")
}

/// Through references, and past the `null` of what is optional.
fn resolved<'a>(schema: &'a serde_json::Value, property: &'a serde_json::Value) -> &'a serde_json::Value {
    if let Some(reference) = property["$ref"].as_str() {
        return resolved(schema, schema.pointer(reference.trim_start_matches('#')).unwrap());
    }
    match property["anyOf"].as_array() {
        Some(either) if either.iter().any(|one| one["type"] == "null") => resolved(schema, &either[0]),
        _ => property,
    }
}

/// The page with what stands between the marks of a block made new.
fn with_block(page: &str, block: &str, content: &str) -> String {
    replace_block(&fs::read_to_string(page).unwrap(), block, content)
}

pub(crate) fn replace_block(page: &str, block: &str, content: &str) -> String {
    let (begin, end) = (format!("<!-- {block}: written by a test -->"), format!("<!-- end of {block} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}\n{content}\n{end}{after}")
}
