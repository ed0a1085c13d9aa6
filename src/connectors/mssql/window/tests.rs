//! What is sent to the server, as text; each statement is read by an independent parser too.

use std::time::Duration;

use datafusion::sql::sqlparser::dialect::MsSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use expect_test::{Expect, expect};

use super::super::capture;
use super::super::testing::relation;
use super::*;
use crate::delta::Watermark;
use crate::source::{LogSettings, ValuePolicy};
use crate::table::TableId;

const TABLE: &str = "
    id int ! + #
    name nvarchar 40
    total money 19 !
    changed datetime2 7 ! +
    rv timestamp 8 !
    key id
";

fn request(change: ChangeDetection, cursor: Option<&str>) -> ReadRequest {
    ReadRequest {
        table: TableId::new("dbo", "t"),
        columns: Some(vec!["id".into(), "total".into()]),
        filter: None,
        key: vec!["id".into()],
        keyed: true,
        change,
        cursor: cursor.map(str::to_owned),
        lag: Duration::ZERO,
        null_cursor: NullCursor::Include,
        beyond_horizon: BeyondHorizon::Wait,
        values: ValuePolicy::default(),
        log: LogSettings::default(),
        reader: "test".to_owned(),
        from: None,
        parallel: 1,
        batch_rows: 10,
        batch_bytes: 1000,
        portion_bytes: 1 << 20,
    }
}

/// Parses what was written; what the parser does not know is none of T-SQL.
fn parsed(sql: &str) -> String {
    if let Err(error) = Parser::parse_sql(&MsSqlDialect {}, sql) {
        panic!("{error}: {sql}");
    }
    sql.to_owned()
}

fn window<'a>(relation: &'a Relation, request: &'a ReadRequest) -> Window<'a> {
    let choice = choose(relation, request, true).unwrap();
    let columns = wanted(relation, request).unwrap();
    Window { request, relation, choice, notes: Vec::new(), columns }
}

fn horizon<T>(at: T) -> Horizon<T> {
    Horizon { at: Some(at), held_by: None, notes: Vec::new() }
}

fn check(sql: &str, expected: Expect) {
    expected.assert_eq(&parsed(sql));
}

#[test]
fn a_first_read_takes_everything_and_money_as_a_decimal() {
    let (relation, request) = (relation(TABLE), request(ChangeDetection::Full, None));
    let window = window(&relation, &request);
    check(&window.select().with(None), expect!["SELECT [id], CAST([total] AS decimal(19,4)) FROM [dbo].[t]"]);
}

#[test]
fn a_window_of_time_is_half_open_and_as_fine_as_the_column() {
    let relation = relation(TABLE);
    let mut request = request(ChangeDetection::Timestamp, None);
    request.filter = Some("name <> N'x' -- not those".into());
    let window = window(&relation, &request);
    let cursor = window.choice.cursor.clone().unwrap();
    let from = Position::Timestamp {
        column: "changed".into(),
        of: "datetime2(7)".into(),
        at: Some(Ticks(17_637_228_000_000_001)),
    };
    let (condition, at) = window.times(&Start::After(from), &horizon(Ticks(17_637_228_600_000_002)), &cursor);
    assert_eq!(at, Some(Ticks(17_637_228_600_000_002)));
    check(
        &window.select().with(condition),
        expect![[r#"
            SELECT [id], CAST([total] AS decimal(19,4)) FROM [dbo].[t] WHERE (name <> N'x' -- not those
            ) AND ([changed] >= CAST('2025-11-21T11:00:00.0000001' AS datetime2(7)) AND [changed] < CAST('2025-11-21T11:01:00.0000002' AS datetime2(7))
            )"#]],
    );
    // Held back: it stays where it is.
    let from =
        Position::Timestamp { column: "changed".into(), of: "datetime2(7)".into(), at: Some(Ticks(9)) };
    assert_eq!(window.times(&Start::After(from), &horizon(Ticks(1)), &cursor).1, Some(Ticks(9)));
}

#[test]
fn row_versions_are_read_below_the_smallest_in_use() {
    let (relation, request) = (relation(TABLE), request(ChangeDetection::Rowversion, None));
    let window = window(&relation, &request);
    let cursor = window.choice.cursor.clone().unwrap();
    assert_eq!(cursor.name, "rv");
    let from = Start::After(Position::Rowversion { column: "rv".into(), below: Number(0x377) });
    let (condition, below) = window.versions(&from, Number(0x37A), &cursor);
    assert_eq!(below, Number(0x37A));
    check(
        &window.select().with(condition),
        expect![[r#"
            SELECT [id], CAST([total] AS decimal(19,4)) FROM [dbo].[t] WHERE ([rv] >= 0x0000000000000377 AND [rv] < 0x000000000000037A
            )"#]],
    );
    // A replica may know less than was known before.
    assert_eq!(window.versions(&from, Number(5), &cursor).1, Number(0x377));
    assert_eq!(window.versions(&Start::Nothing, Number(5), &cursor), (None, Number(5)));
}

#[test]
fn numbers_are_read_up_to_the_largest_that_is_complete() {
    let relation = relation(TABLE);
    let mut request = request(ChangeDetection::Id, None);
    request.keyed = false;
    let window = window(&relation, &request);
    let cursor = window.choice.cursor.clone().unwrap();
    let from = Start::After(Position::Id { column: "id".into(), at: Some(Number(7)) });
    assert_eq!(
        window.numbers(&from, &horizon(Number(9)), &cursor),
        (Some("[id] > 7 AND [id] <= 9".into()), Some(Number(9)))
    );
    let unsure = Horizon { at: None, held_by: None, notes: Vec::new() };
    assert_eq!(window.numbers(&Start::Nothing, &unsure, &cursor), (Some("1 = 0".into()), None));
}

#[test]
fn auto_takes_what_loses_least() {
    let pick = |text: &str, snapshot: bool| {
        let request = request(ChangeDetection::Auto, None);
        let choice = choose(&relation(text), &request, snapshot).unwrap();
        format!("{} {:?}", choice.change.name(), choice.cursor.map(|cursor| cursor.name))
    };
    assert_eq!(pick(&format!("{TABLE}\ntracked"), true), "tracking None");
    assert_eq!(pick(&format!("{TABLE}\ntracked"), false), r#"rowversion Some("rv")"#);
    assert_eq!(pick(TABLE, true), r#"rowversion Some("rv")"#);
    assert_eq!(
        pick("id int ! #\ntotal money\nmodified_at datetime\nkey id", true),
        r#"timestamp Some("modified_at")"#
    );
    assert_eq!(pick("id int ! #\ntotal money\nkey id", true), r#"id Some("id")"#);
    assert_eq!(pick("id int !\ntotal money\nkey id", true), "full None");
}

#[test]
fn tracking_that_cannot_be_used_says_why() {
    let refused = |text: &str, snapshot: bool, key: &[&str]| {
        let mut request = request(ChangeDetection::Tracking, None);
        request.key = key.iter().map(|name| (*name).to_owned()).collect();
        choose(&relation(text), &request, snapshot).unwrap_err().hint_text().unwrap().to_owned()
    };
    let tracked = format!("{TABLE}\ntracked");
    assert!(refused(TABLE, true, &["id"]).contains("ALTER TABLE [dbo].[t] ENABLE CHANGE_TRACKING"));
    assert!(refused(&tracked, false, &["id"]).contains("ALLOW_SNAPSHOT_ISOLATION"));
    assert!(refused(&tracked, true, &["name"]).contains("primary_key: [id]"));
}

#[test]
fn change_tables_are_taken_where_they_have_what_is_wanted() {
    let instance = |columns: &[&str]| capture::Instance {
        name: "dbo_t".into(),
        table: "dbo_t_CT".into(),
        start: Some(capture::Lsn(1)),
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
    };
    let mut relation = relation(TABLE);
    let choose = |relation: &Relation, change, columns: &[&str]| {
        let mut request = request(change, None);
        request.columns = Some(columns.iter().map(|name| (*name).to_owned()).collect());
        choose(relation, &request, true)
    };
    let refused = |relation: &Relation, columns: &[&str]| {
        let error = choose(relation, ChangeDetection::Log, columns).unwrap_err();
        format!("{}\n  {}\n", error.message(), error.hint_text().unwrap_or_default())
    };
    let mut said = refused(&relation, &["id"]);
    relation.captured = true;
    said += &refused(&relation, &["id"]);
    relation.instances = vec![instance(&["id", "name"])];
    said += &refused(&relation, &["id", "name", "total"]);
    assert_eq!(choose(&relation, ChangeDetection::Log, &["name"]).unwrap().change, ChangeDetection::Log);
    let auto = choose(&relation, ChangeDetection::Auto, &["id", "name"]).unwrap();
    assert_eq!(auto.change, ChangeDetection::Log);
    // What is on and cannot be used is said.
    let auto = choose(&relation, ChangeDetection::Auto, &["id", "total"]).unwrap();
    assert_eq!(auto.change, ChangeDetection::Rowversion);
    assert!(auto.notes.iter().any(|note| note.starts_with("Change Data Capture is on and not used")));
    relation.columns[1].generated = true;
    said += &refused(&relation, &["id", "name"]);
    expect![[r#"
        Change Data Capture is not on for this table
          run `EXEC sys.sp_cdc_enable_db` once, then `EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N't', @role_name = NULL`
        the user may not see the change tables
          run `GRANT SELECT ON SCHEMA::cdc TO <user>`
        no capture instance has the column `total`
          run `EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N't', @role_name = NULL, @capture_instance = N'dbo_t_new'` (a table may have two instances: the older one goes by `sys.sp_cdc_disable_table` when a pass has gone over), or leave the column out of `columns`
        the server computes `name`, and Change Data Capture has NULL in its place
          list the other columns in `columns`, or use `change: tracking`
    "#]].assert_eq(&said);
    relation.tracked = true;
    let auto = choose(&relation, ChangeDetection::Auto, &["id"]).unwrap();
    assert_eq!(auto.change, ChangeDetection::Tracking);
    (relation.tracked, relation.captured, relation.temporal) = (false, false, true);
    let auto = choose(&relation, ChangeDetection::Auto, &["id"]).unwrap();
    assert_eq!(auto.change, ChangeDetection::Temporal);
}

#[test]
fn a_position_of_something_else_is_not_used() {
    let relation = relation(TABLE);
    let mut request = request(ChangeDetection::Rowversion, None);
    let choice = choose(&relation, &request, true).unwrap();
    let mut notes = Vec::new();
    let mut from = |position: Position, source: Option<&str>| {
        let stored = Stored::new(Some("fork 1".into()), position);
        request.from = Some(stored.write());
        start(&relation, &request, &choice, source, &mut notes)
    };
    let own = Position::Rowversion { column: "rv".into(), below: Number(7) };
    assert_eq!(from(own.clone(), Some("fork 1")), Start::After(own.clone()));
    assert_eq!(from(own.clone(), None), Start::After(own.clone()));
    assert_eq!(from(own, Some("fork 2")), Start::Nothing);
    assert_eq!(from(Position::Full {}, None), Start::Nothing);
    assert_eq!(from(Position::Id { column: "id".into(), at: None }, None), Start::Nothing);
    expect![[r#"
        the stored position is not used: it belongs to another database, or to one that was restored; the whole table is read
        the stored position is not used: it comes from full reads; the whole table is read
        the stored position is not used: it belongs to another way of finding changes, or to another column; the whole table is read"#]]
    .assert_eq(&notes.join("\n"));
    request.from = Some(Watermark::new("?"));
    assert_eq!(start(&relation, &request, &choice, None, &mut notes), Start::Nothing);
}

#[test]
fn rows_without_a_cursor_go_by_policy() {
    let relation = relation("id int !\nupdated_at datetime\nkey id");
    for (policy, expected) in [
        (NullCursor::Include, "SELECT [id] FROM [dbo].[t] WHERE ((x) OR [updated_at] IS NULL\n)"),
        (NullCursor::Exclude, "SELECT [id] FROM [dbo].[t] WHERE (x\n)"),
    ] {
        let mut request = request(ChangeDetection::Timestamp, None);
        request.columns = Some(vec!["id".into()]);
        request.null_cursor = policy;
        let window = window(&relation, &request);
        let cursor = window.choice.cursor.clone().unwrap();
        let mut select = window.select();
        window.add(&mut select, &cursor, false, Some("x".into()));
        assert_eq!(select.with(None), expected);
    }
}
