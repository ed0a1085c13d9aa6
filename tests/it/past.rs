//! The past of a table through the program: tags, `AS OF`, changes, rollback; the forms in which rows
//! leave; and the shell. SQLite on both ends: no server is needed.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use expect_test::expect;

use crate::fixture::{Pipeline, on_path, ran};

/// A shop with three snapshots: two rows; one changed and one new; one more.
fn shop() -> (Pipeline, rusqlite::Connection) {
    let pipeline =
        Pipeline::new("sqlite:shop.db", "sqlite:dwh.db", &["main.orders: { change: version, cursor: v }"]);
    let db = rusqlite::Connection::open(pipeline.folder().join("shop.db")).unwrap();
    db.execute_batch(
        "create table orders (id integer primary key, customer text not null, total double, v integer not null);
         insert into orders values (1, 'ann', 1.5, 1), (2, 'bob', null, 2);",
    )
    .unwrap();
    pipeline.ok(&["run"]);
    db.execute_batch(
        "update orders set total = 2.5, v = 3 where id = 1; insert into orders values (3, 'cy', 9, 4);",
    )
    .unwrap();
    pipeline.ok(&["run"]);
    db.execute_batch("insert into orders values (4, 'di', 0, 5)").unwrap();
    pipeline.ok(&["run"]);
    (pipeline, db)
}

/// The ids of the snapshots, oldest first.
fn snapshots(pipeline: &Pipeline) -> Vec<String> {
    let listed = pipeline.ok(&["snapshots", "orders", "--output", "json"]).stdout;
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["snapshot"].to_string();
    let mut ids: Vec<String> = listed.lines().map(id).collect();
    ids.reverse();
    ids
}

fn csv(pipeline: &Pipeline, arguments: &[&str]) -> String {
    pipeline.ok(&[arguments, &["--output", "csv"]].concat()).stdout
}

#[test]
fn a_tag_is_a_moment_to_read_at() {
    let (pipeline, _) = shop();
    let ids = snapshots(&pipeline);
    assert_eq!(ids.len(), 3);
    pipeline.ok(&["tag", "orders", "opening", "--at", &ids[0], "--keep", "90d"]);
    pipeline.ok(&["tag", "main.orders", "now"]);
    let listed = pipeline.ok(&["tag", "orders"]).stdout;
    for word in ["opening", "90d", "now", "main", "branch"] {
        assert!(listed.contains(word), "{word}: {listed}");
    }
    let all = "select id, customer, total from orders order by id";
    expect![[r#"
        id,customer,total
        1,ann,1.5
        2,bob,
    "#]]
    .assert_eq(&csv(&pipeline, &["query", "--as-of", "opening", all]));
    // Two versions of one table in one statement.
    expect![[r#"
        id,before,after
        1,1.5,2.5
    "#]]
    .assert_eq(&csv(
        &pipeline,
        &[
            "query",
            "select a.id, a.total as before, b.total as after from orders version as of 'opening' a \
           join orders version as of 'now' b on a.id = b.id where a.total <> b.total",
        ],
    ));
    expect![[r#"
        name,type,same
        main,BRANCH,true
        now,TAG,true
        opening,TAG,false
    "#]]
    .assert_eq(&csv(
        &pipeline,
        &[
            "query",
            &format!("select name, type, snapshot_id = {} as same from \"orders$refs\" order by 1", ids[2]),
        ],
    ));
    expect![[r#"
        record_count,file_count,partition
        2,1,
    "#]]
    .assert_eq(&csv(
        &pipeline,
        &[
            "query",
            "--as-of",
            "opening",
            "select record_count, file_count, partition from \"orders$partitions\"",
        ],
    ));
    let manifests = csv(&pipeline, &["query", "select count(*) > 0 as any from \"orders$manifests\""]);
    assert_eq!(manifests, "any\ntrue\n");

    for (arguments, says) in [
        (&["tag", "orders", "opening"][..], "is taken"),
        (&["tag", "orders", "main"], "a meaning of its own"),
        (&["tag", "orders", "frazil_mine"], "a meaning of its own"),
        (&["tag", "orders", "42"], "taken for something else"),
        (&["tag", "orders", "nobody", "--delete"], "no tag or branch `nobody`"),
        (&["tag", "orders", "main", "--delete"], "no tag or branch `main`"),
        (&["tag", "ordres", "x"], "no such table"),
        (&["query", "--as-of", "closing", all], "the table has main, now, opening"),
        (&["query", "--as-of", "7 days ago", all], "neither a snapshot id nor a time nor a name"),
        (&["query", "select * from \"orders$what\""], "`$manifests`"),
    ] {
        let ran = pipeline.run(arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?} {ran:?}");
        assert!(ran.stderr.contains(says), "{says}: {ran:?}");
    }
    pipeline.ok(&["tag", "orders", "opening", "--delete"]);
    assert!(!pipeline.ok(&["tag", "orders"]).stdout.contains("opening"));
}

#[test]
fn changes_are_listed_row_by_row() {
    let (pipeline, _) = shop();
    let ids = snapshots(&pipeline);
    let sorted = |arguments: &[&str]| {
        let text = csv(&pipeline, arguments);
        let mut lines: Vec<&str> = text.lines().collect();
        lines[1..].sort_unstable();
        lines.join("\n")
    };
    let names = "_change,id,customer,total,v";
    let check = |arguments: &[&str], rows: &[&str]| {
        assert_eq!(sorted(&[&["changes"], arguments].concat()), [&[names], rows].concat().join("\n"));
    };
    check(&["orders"], &["insert,4,di,0.0,5"]);
    check(&["orders", "--from", &ids[0], "--to", &ids[1]], &["insert,3,cy,9.0,4", "update,1,ann,2.5,3"]);
    check(
        &["main.orders", "--from", &ids[0]],
        &["insert,3,cy,9.0,4", "insert,4,di,0.0,5", "update,1,ann,2.5,3"],
    );
    // Backwards: what a rollback would do.
    check(&["orders", "--from", &ids[2], "--to", &ids[1]], &["delete,4,,,"]);
}

#[test]
fn a_rollback_takes_the_position_and_the_target_along() {
    let (pipeline, db) = shop();
    let ids = snapshots(&pipeline);
    let target = |sql: &str| {
        let target = rusqlite::Connection::open(pipeline.folder().join("dwh.db")).unwrap();
        target.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap()
    };
    let all = "select group_concat(id || customer || coalesce(total, '-'), ' ') from (select * from orders order by id)";
    let would = pipeline.ok(&["rollback", "orders", "--to", &ids[0], "--dry-run"]).stdout;
    assert!(would.contains("would show"), "{would}");
    assert_eq!(snapshots(&pipeline).len(), 3);
    pipeline.ok(&["load"]);
    assert_eq!(target(all), "1ann2.5 2bob- 3cy9.0 4di0.0");

    let done = pipeline.ok(&["rollback", "orders", "--to", &ids[0]]);
    assert!(done.stderr.contains(&format!("rollback orders --to {}", ids[2])), "{done:?}");
    pipeline.ok(&["load"]);
    assert_eq!(target(all), "1ann1.5 2bob-");
    // And forward again, by the id that was named.
    pipeline.ok(&["rollback", "orders", "--to", &ids[2]]);
    pipeline.ok(&["load"]);
    assert_eq!(target(all), "1ann2.5 2bob- 3cy9.0 4di0.0");

    pipeline.ok(&["rollback", "orders", "--to", &ids[1]]);
    db.execute_batch("insert into orders values (5, 'ed', 1, 6)").unwrap();
    pipeline.ok(&["run"]);
    assert_eq!(target(all), "1ann2.5 2bob- 3cy9.0 4di0.0 5ed1.0");
    let ran = pipeline.run(&["rollback", "orders", "--to", "1"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("no such snapshot"), "{ran:?}");
}

#[test]
fn rows_leave_in_five_forms() {
    let (pipeline, _) = shop();
    let all = "select id, customer, total from orders order by id";
    let bytes = |output: &str| {
        let output = pipeline.command(&["query", all, "--output", output]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let parquet = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(
        bytes::Bytes::from(bytes("parquet")),
        1024,
    );
    let parquet: Vec<_> = parquet.unwrap().map(Result::unwrap).collect();
    let stream = bytes("arrow");
    let arrow = arrow::ipc::reader::StreamReader::try_new(stream.as_slice(), None).unwrap();
    let arrow: Vec<_> = arrow.map(Result::unwrap).collect();
    for batches in [&parquet, &arrow] {
        let table = arrow::util::pretty::pretty_format_batches(batches).unwrap().to_string();
        expect![[r#"
            +----+----------+-------+
            | id | customer | total |
            +----+----------+-------+
            | 1  | ann      | 2.5   |
            | 2  | bob      |       |
            | 3  | cy       | 9.0   |
            | 4  | di       | 0.0   |
            +----+----------+-------+"#]]
        .assert_eq(&table);
    }
    assert_eq!(
        String::from_utf8(bytes("json")).unwrap(),
        "{\"id\":1,\"customer\":\"ann\",\"total\":2.5}\n{\"id\":2,\"customer\":\"bob\",\"total\":null}\n\
         {\"id\":3,\"customer\":\"cy\",\"total\":9.0}\n{\"id\":4,\"customer\":\"di\",\"total\":0.0}\n"
    );
    // Nothing found is an empty file of the right shape, and reports are not rows.
    let none = pipeline.command(&["query", "select id from orders where false", "--output", "parquet"]);
    let none = { none }.output().unwrap().stdout;
    let none =
        parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes::Bytes::from(none), 1024)
            .unwrap();
    assert_eq!(none.count(), 0);
    assert_eq!(pipeline.run(&["snapshots", "orders", "--output", "parquet"]).code, Some(2));
}

#[test]
fn statements_are_read_from_standard_input() {
    let (pipeline, _) = shop();
    let ask = |arguments: &[&str], text: &str| {
        let mut child = pipeline
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    };
    let text = "select count(*) as n from orders; -- and ;\nselect ';' as s;\n";
    assert_eq!(ask(&["query", "--output", "csv"], text).stdout, "n\n4\ns\n;\n");
    assert_eq!(ask(&["query", "-", "--output", "csv"], text).stdout, "n\n4\ns\n;\n");
    let refused = ask(&["query", "--output", "arrow"], text);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(ask(&["query"], "select 1; select nothing from nowhere").code, Some(2));
}

/// A person at a terminal: `script` makes one.
#[test]
fn a_shell_answers_a_person() {
    let (pipeline, _) = shop();
    let program = on_path("script").expect("`script` of util-linux");
    let history = pipeline.folder().join("typed");
    let mut child = Command::new(program)
        .args(["-qec", &format!("{} query", env!("CARGO_BIN_EXE_frazil")), "/dev/null"])
        .current_dir(pipeline.folder())
        .env("FRAZIL_SHELL_HISTORY", &history)
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // What is typed, and what a person sees before typing on.
    let typed = [
        (".tables\n", "main.orders\r\n"),
        ("select customer\nfrom main.ord\t where id = 3;\n", "| cy "),
        ("select oops;\n", "error:"),
        (".output csv\n", ".output csv"),
        (".schema orders\n", "not null"),
        ("select 40 + 2 as answer;\n", "answer\r\n42\r\n"),
        (".what\n", "does not know this word"),
        (".quit\n", ""),
    ];
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = String::new();
    let mut page = [0; 4096];
    let mut wait_for = |said: &mut String, from: usize, text: &str| loop {
        if let Some(at) = said[from..].find(text) {
            return from + at + text.len();
        }
        let read = screen.read(&mut page).unwrap();
        assert_ne!(read, 0, "{text}: {said}");
        said.push_str(&String::from_utf8_lossy(&page[..read]));
    };
    let mut seen = 0;
    for (lines, answer) in typed {
        seen = wait_for(&mut said, seen, "frazil> ");
        keyboard.write_all(lines.as_bytes()).unwrap();
        seen = wait_for(&mut said, seen, answer);
    }
    child.wait().unwrap();
    assert!(std::fs::read_to_string(history).unwrap().contains("40 + 2"));
}
