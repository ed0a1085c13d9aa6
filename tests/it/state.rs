//! Positions in people's hands: their past, whether a stream can go on from them, setting them, carrying
//! them away and back; reading everything again; and who did what. SQLite on both ends.

use serde_json::Value;

use crate::fixture::Pipeline;

/// A shop with two snapshots: two rows, then one changed and one new.
fn shop(stream: &str) -> (Pipeline, rusqlite::Connection) {
    let pipeline = Pipeline::new("sqlite:shop.db", "sqlite:dwh.db", &[stream]);
    let db = rusqlite::Connection::open(pipeline.folder().join("shop.db")).unwrap();
    db.execute_batch(
        "create table orders (id integer primary key, customer text not null, v integer not null);
         insert into orders values (1, 'ann', 1), (2, 'bob', 2);",
    )
    .unwrap();
    pipeline.ok(&["run"]);
    db.execute_batch(
        "update orders set customer = 'anna', v = 3 where id = 1; insert into orders values (3, 'cy', 4)",
    )
    .unwrap();
    pipeline.ok(&["run"]);
    (pipeline, db)
}

const BY_VERSION: &str = "main.orders: { change: version, cursor: v }";

fn extracted(pipeline: &Pipeline, arguments: &[&str]) -> u64 {
    pipeline.json(arguments)[0]["extract"]["rows"].as_u64().unwrap()
}

/// Customers in the target, in key order.
fn target(pipeline: &Pipeline) -> Vec<String> {
    let dwh = rusqlite::Connection::open(pipeline.folder().join("dwh.db")).unwrap();
    let mut rows = dwh.prepare("select customer from orders order by id").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_position_has_a_past_and_can_be_set_back() {
    let (pipeline, _db) = shop(BY_VERSION);
    let past = pipeline.json(&["state", "history"]);
    assert_eq!(past.len(), 2, "{past:?}");
    assert_eq!(past[0]["from"], past[1]["to"]);
    assert_eq!(past[1]["from"], Value::Null);

    // Rows since then are read again, and change nothing.
    let first = past[1]["snapshot"].to_string();
    pipeline.ok(&["state", "set", "main.orders", "--as-of", &first]);
    let past = pipeline.json(&["state", "history"]);
    assert_eq!((past.len(), &past[0]["to"]), (3, &past[2]["to"]));
    assert!(past[0]["set_by"].is_string(), "{past:?}");
    assert_eq!(extracted(&pipeline, &["run"]), 2);
    assert_eq!(target(&pipeline), ["anna", "bob", "cy"]);

    let deeds = pipeline.json(&["journal"]);
    assert_eq!((&deeds[0]["deed"], &deeds[0]["subject"]), (&"set".into(), &"main.orders".into()));
    assert_ne!(deeds[0]["from"], deeds[0]["to"]);
}

#[test]
fn positions_are_carried_away_and_back() {
    let (pipeline, db) = shop(BY_VERSION);
    let file = pipeline.folder().join("positions");
    let exported = pipeline.ok(&["state", "export"]).stdout;
    std::fs::write(&file, &exported).unwrap();
    let again = pipeline.ok(&["state", "import", file.to_str().unwrap()]).stdout;
    assert!(again.contains("is there already"), "{again}");
    db.execute_batch("insert into orders values (4, 'di', 5)").unwrap();
    pipeline.ok(&["run"]);
    pipeline.ok(&["state", "import", file.to_str().unwrap()]);
    let watermark = |text: &str| serde_json::from_str::<Value>(text).unwrap()["watermark"].clone();
    assert_eq!(watermark(&pipeline.ok(&["state", "export"]).stdout), watermark(&exported));
    assert_eq!(extracted(&pipeline, &["run"]), 1);
    assert_eq!(target(&pipeline), ["anna", "bob", "cy", "di"]);
}

#[test]
fn a_position_that_makes_no_sense_is_refused() {
    let (pipeline, _db) = shop(BY_VERSION);
    let before = pipeline.ok(&["state", "export"]).stdout;
    for (arguments, message) in [
        (["main.orders", "{"], "the position is not JSON"),
        (["main.orders", "{\"strange\": 1}"], "position"),
        (["main.order", "{}"], "did you mean `main.orders`?"),
    ] {
        let ran = pipeline.run(&[&["state", "set"], &arguments[..]].concat());
        assert_ne!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(message), "{arguments:?}: {ran:?}");
    }
    assert_eq!(pipeline.ok(&["state", "export"]).stdout, before);
    assert!(pipeline.json(&["journal"]).is_empty());
    let (whole, _db) = shop("main.orders: { change: full }");
    let ran = whole.run(&["state", "set", "main.orders", "{}"]);
    assert!(ran.stderr.contains("read whole in every pass"), "{ran:?}");
}

#[test]
fn a_stream_that_cannot_go_on_is_found() {
    let (pipeline, _db) = shop(BY_VERSION);
    let good = pipeline.json(&["state", "verify"]);
    assert_eq!(good[0]["findings"], Value::Array(Vec::new()), "{good:?}");

    let first = pipeline.json(&["state", "history"])[1]["snapshot"].to_string();
    pipeline.ok(&["rollback", "main.orders", "--to", &first]);
    let ran = pipeline.run(&["state", "verify"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("was rolled back from"), "{ran:?}");
    let deeds = pipeline.json(&["journal"]);
    assert_eq!((&deeds[0]["deed"], &deeds[0]["to"]), (&"rollback".into(), &Value::String(first)));
    pipeline.ok(&["load"]);
    pipeline.ok(&["state", "verify"]);

    std::fs::rename(pipeline.folder().join("shop.db"), pipeline.folder().join("gone.db")).unwrap();
    let ran = pipeline.run(&["state", "verify", "--output", "json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

#[test]
fn everything_is_read_again_and_only_what_differs_is_committed() {
    let (pipeline, db) = shop(BY_VERSION);
    // A change that no cursor shows, and somebody's hand in the target.
    db.execute_batch("update orders set customer = 'bobby' where id = 2; delete from orders where id = 3")
        .unwrap();
    let dwh = rusqlite::Connection::open(pipeline.folder().join("dwh.db")).unwrap();
    dwh.execute_batch("update orders set customer = 'nobody' where id = 1").unwrap();
    pipeline.ok(&["run"]);
    assert_eq!(target(&pipeline), ["nobody", "bob", "cy"], "no pass can see it");

    let report = &pipeline.json(&["run", "--full-refresh"])[0];
    let extract = &report["extract"];
    assert_eq!((&extract["rows"], &extract["deleted"]), (&1.into(), &1.into()), "{report}");
    assert_eq!(target(&pipeline), ["anna", "bobby"]);
    // It goes on by the cursor as before.
    db.execute_batch("insert into orders values (4, 'di', 9)").unwrap();
    assert_eq!(extracted(&pipeline, &["run"]), 1);
    assert_eq!(target(&pipeline), ["anna", "bobby", "di"]);
    // What only the target lost is work that was done, too.
    dwh.execute_batch("update orders set customer = 'nobody' where id = 1").unwrap();
    let report = &pipeline.json(&["run", "--full-refresh"])[0];
    assert_eq!(
        (&report["verdict"], &report["extract"]["changed"]),
        (&"done".into(), &false.into()),
        "{report}"
    );
    assert_eq!(target(&pipeline), ["anna", "bobby", "di"]);
    let deeds = pipeline.json(&["journal"]);
    assert_eq!(deeds[0]["deed"], "full_refresh");
}

#[test]
fn an_append_table_is_not_doubled_by_reading_it_again() {
    let (pipeline, _db) = shop("main.orders: { change: version, cursor: v, mode: append }");
    let before = target(&pipeline).len();
    let ran = pipeline.run(&["run", "--full-refresh"]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("would double the rows"), "{ran:?}");
    assert_eq!(target(&pipeline).len(), before);
}

/// The targets' own records, as somebody may damage them.
fn in_target(pipeline: &Pipeline, sql: &str) {
    let dwh = rusqlite::Connection::open(pipeline.folder().join("dwh.db")).unwrap();
    dwh.execute_batch(sql).unwrap();
}

/// What `state repair` says it did, or would do.
fn repaired(pipeline: &Pipeline, arguments: &[&str]) -> String {
    pipeline.ok(&[&["state", "repair"], arguments].concat()).stdout
}

#[test]
fn a_target_that_lost_its_record_is_loaded_anew() {
    let (pipeline, _db) = shop(BY_VERSION);
    assert!(repaired(&pipeline, &[]).contains("nothing to repair"));
    for damage in [
        // A record that was lost, with a row that nobody knows.
        "delete from frazil_applied; insert into orders values (9, 'ghost', 9)",
        // A snapshot that is not in the lake any more.
        "update frazil_applied set snapshot_id = 1; insert into orders values (9, 'ghost', 9)",
    ] {
        in_target(&pipeline, damage);
        let ran = pipeline.run(&["state", "verify"]);
        assert_eq!(ran.code, Some(1), "{damage}: {ran:?}");
        let would = repaired(&pipeline, &["--dry-run"]);
        assert!(would.contains("the target is loaded anew"), "{damage}: {would}");
        assert_eq!(target(&pipeline), ["anna", "bob", "cy", "ghost"], "a dry run changes nothing");
        repaired(&pipeline, &[]);
        assert_eq!(target(&pipeline), ["anna", "bob", "cy"], "{damage}");
        pipeline.ok(&["state", "verify"]);
    }
    let deeds = pipeline.json(&["journal"]);
    assert_eq!((&deeds[0]["deed"], &deeds[0]["subject"]), (&"repair".into(), &"main.orders".into()));
}

#[test]
fn an_append_table_whose_record_was_lost_is_not_doubled() {
    let (pipeline, _db) = shop("main.orders: { mode: append, change: version, cursor: v }");
    in_target(&pipeline, "delete from frazil_applied");
    let before = target(&pipeline);
    let ran = pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("would be doubled"), "{ran:?}");
    assert_eq!(target(&pipeline), before);
    repaired(&pipeline, &[]);
    assert_eq!(target(&pipeline), before);
    pipeline.ok(&["run"]);
    assert_eq!(target(&pipeline), before);
}

#[test]
fn a_position_that_is_of_no_use_goes_back_to_one_that_is() {
    let (pipeline, db) = shop(BY_VERSION);
    let cursor = |stream: &str| {
        pipeline.rewrite("sqlite:shop.db", "sqlite:dwh.db", &Default::default(), &[stream]);
    };
    let first = extracted_position(&pipeline);
    // Somebody tried another cursor, and went back.
    cursor("main.orders: { change: version, cursor: id }");
    pipeline.ok(&["run"]);
    db.execute_batch("update orders set customer = 'bobby', v = 5 where id = 2").unwrap();
    cursor(BY_VERSION);
    let ran = pipeline.run(&["state", "verify"]);
    assert!(ran.stdout.contains("the source cannot go on from the position"), "{ran:?}");
    assert!(repaired(&pipeline, &[]).contains("the position goes back"));
    assert_eq!(extracted_position(&pipeline), first);
    assert_eq!(extracted(&pipeline, &["run"]), 1);
    assert_eq!(target(&pipeline), ["anna", "bobby", "cy"]);
}

fn extracted_position(pipeline: &Pipeline) -> Value {
    pipeline.json(&["state", "show"])[0]["watermark"].clone()
}

#[test]
fn a_property_that_says_another_position_is_set_right() {
    let (pipeline, db) = shop(BY_VERSION);
    let folder = std::path::PathBuf::from(pipeline.location("main", "orders")).join("metadata");
    let newest = || {
        let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        let version = |path: &std::path::PathBuf| {
            let name = path.file_name()?.to_str()?.strip_suffix(".metadata.json")?.to_owned();
            name.strip_prefix('v')?.parse::<u32>().ok()
        };
        files.filter(|path| version(path).is_some()).max_by_key(|path| version(path)).unwrap()
    };
    let file = newest();
    let mut metadata: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let right = metadata["properties"]["frazil.watermark"].take();
    metadata["properties"]["frazil.watermark"] = "{}".into();
    std::fs::write(&file, metadata.to_string()).unwrap();
    // What counts is the snapshot's: nothing is read twice or left out.
    let ran = pipeline.run(&["state", "verify"]);
    assert!(ran.stdout.contains("property says another position"), "{ran:?}");
    assert!(repaired(&pipeline, &[]).contains("the property says what the snapshot says"));
    let metadata: Value = serde_json::from_str(&std::fs::read_to_string(newest()).unwrap()).unwrap();
    assert_eq!(metadata["properties"]["frazil.watermark"], right);
    db.execute_batch("insert into orders values (4, 'di', 5)").unwrap();
    assert_eq!(extracted(&pipeline, &["run"]), 1);
}

#[test]
fn a_history_that_is_damaged_is_made_again_from_the_lake() {
    let (pipeline, _db) = shop(BY_VERSION);
    let history = pipeline.folder().join(".frazil/history.db");
    for end in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", history.display())).ok();
    }
    std::fs::write(&history, "this is no database, and was one").unwrap();
    let ran = pipeline.ok(&["run"]);
    assert!(ran.stderr.contains("this run is not noted"), "{ran:?}");
    assert!(repaired(&pipeline, &["--dry-run"]).contains("the run history is damaged"));
    let said = repaired(&pipeline, &[]);
    assert!(said.contains("has the 2 passes"), "{said}");
    let passes = pipeline.json(&["history"]);
    let rows: Vec<_> = passes.iter().map(|pass| pass["rows_extracted"].as_u64()).collect();
    assert_eq!(rows, [Some(2), Some(2)], "{passes:?}");
    assert!(!repaired(&pipeline, &[]).contains("damaged"));
}

#[test]
fn positions_say_in_which_format_they_are() {
    let (pipeline, _db) = shop(BY_VERSION);
    let exported = pipeline.ok(&["state", "export"]).stdout;
    let mut line: Value = serde_json::from_str(&exported).unwrap();
    assert_eq!(line["format"], 1);
    let file = pipeline.folder().join("positions");
    let import = |line: &Value| {
        std::fs::write(&file, line.to_string()).unwrap();
        pipeline.run(&["state", "import", file.to_str().unwrap()])
    };
    line["format"] = 2.into();
    let ran = import(&line);
    assert!(ran.code != Some(0) && ran.stderr.contains("format 2, of a newer frazil"), "{ran:?}");
    // The first form had no number.
    line.as_object_mut().unwrap().remove("format");
    assert_eq!(import(&line).code, Some(0));
}
