//! Change tables and histories of SQL Server, against a pretended server: which windows are asked for, and
//! what becomes of the position when something is gone, late or new. What the statements find is tried
//! beside them, in `src/connectors/mssql/{capture,temporal}/tests.rs`.

use frazil::ErrorKind;
use frazil::connection::Connection;
use frazil::connectors;
use frazil::delta::Watermark;
use frazil::source::{ChangeDetection, Extent, ReadRequest, Severity};

use crate::mssql_shop::{Fake, Shop, Way, lsn, read, request, text};
use crate::tds::{Trouble, Type, Value, When};

/// People whose changes are captured from position 0x10 on, up to 0x20.
fn captured() -> Shop {
    let mut shop = Shop::people();
    shop.instances = Some(vec![("dbo_t", 0x10, vec!["id", "name"])]);
    (shop.newest, shop.now) = (Some((0x20, 0)), 3);
    shop
}

fn changed(id: i64, name: &str) -> Vec<Value> {
    vec![Value::Int(id), text(name), Value::Int(0)]
}

fn gone(id: i64) -> Vec<Value> {
    vec![Value::Int(id), text("was"), Value::Int(1)]
}

fn after(change: ChangeDetection, from: &Watermark) -> ReadRequest {
    ReadRequest { from: Some(from.clone()), ..request(change) }
}

#[tokio::test]
async fn a_first_read_hands_over_to_the_log_when_the_log_has_passed_it() {
    let fake = Fake::new(captured());
    let url = fake.server.url();
    let first = read(&url, request(ChangeDetection::Auto)).await.unwrap();
    assert_eq!((first.plan.change, first.plan.extent), (ChangeDetection::Log, Extent::Whole));
    // The position is taken in the transaction that reads, before the rows.
    let log = fake.server.log();
    let place = |part: &str| log.iter().rposition(|sql| sql.contains(part)).unwrap();
    assert!(place("LEVEL SNAPSHOT") < place("fn_cdc_get_max_lsn"));
    assert!(place("fn_cdc_get_max_lsn") < place("SELECT [id], [name] FROM [dbo].[t]"));

    // Captured meanwhile: a change that the first read has seen already, and has gone beyond.
    fake.change(|shop| {
        shop.log = vec![(0x25, changed(2, "bo"))];
        (shop.newest, shop.now) = (Some((0x25, 2)), 10);
    });
    let early = read(&url, after(ChangeDetection::Log, &first.resume)).await.unwrap();
    assert_eq!((early.plan.extent, early.rows.len()), (Extent::Log, 0));
    assert!(
        early.plan.notes.iter().any(|note| note.contains("wait for a later pass")),
        "{:?}",
        early.plan.notes
    );
    assert!(early.resume.as_str().contains(&lsn(0x20)), "{}", early.resume);
    // The log stands where the early pass began: still not beyond it.
    fake.change(|shop| (shop.newest, shop.now) = (Some((0x28, 10)), 20));
    let still = read(&url, after(ChangeDetection::Log, &early.resume)).await.unwrap();
    assert_eq!((still.rows.len(), &still.resume), (0, &early.resume));
    // Beyond it: everything after the position, the early change too.
    fake.change(|shop| {
        shop.log.extend([(0x26, changed(2, "bob")), (0x30, gone(1))]);
        shop.newest = Some((0x30, 11));
    });
    let next = read(&url, after(ChangeDetection::Log, &still.resume)).await.unwrap();
    assert_eq!(next.rows, ["2 | bo | 0", "2 | bob | 0", "1 | was | 1"]);
    let window = format!("> {} AND [__$start_lsn] <= {}", lsn(0x20), lsn(0x30));
    assert!(next.plan.statement.contains(&window), "{}", next.plan.statement);
    // Nothing more of this table: the position stays, until it is an hour old.
    fake.change(|shop| (shop.newest, shop.now) = (Some((0x40, 60)), 60));
    let idle = read(&url, after(ChangeDetection::Log, &next.resume)).await.unwrap();
    assert_eq!((idle.rows.len(), &idle.resume), (0, &next.resume));
    fake.change(|shop| (shop.newest, shop.now) = (Some((0x50, 3700)), 3700));
    let idle = read(&url, after(ChangeDetection::Log, &next.resume)).await.unwrap();
    assert!(idle.rows.is_empty() && idle.resume.as_str().contains(&lsn(0x50)), "{}", idle.resume);
}

#[tokio::test]
async fn a_log_with_a_gap_starts_anew() {
    let fake = Fake::new(captured());
    let url = fake.server.url();
    let first = read(&url, request(ChangeDetection::Log)).await.unwrap();
    type Change = fn(&mut Shop);
    let changes: [(Change, &str); 3] = [
        // Clean-up went past the position.
        (|shop| shop.instances.as_mut().unwrap()[0].1 = 0x22, "clean-up"),
        (|shop| (shop.instances, shop.newest) = (captured().instances, Some((0x1F, 0))), "restored"),
        (|shop| (shop.newest, shop.fork) = (Some((0x30, 0)), "fork 2"), "restored"),
    ];
    for (change, why) in changes {
        fake.change(change);
        let anew = read(&url, after(ChangeDetection::Log, &first.resume)).await.unwrap();
        assert_eq!((anew.plan.extent, anew.plan.continues), (Extent::Whole, false), "{why}");
        let notes = anew.plan.notes.join("\n");
        assert!(notes.contains("the stored position is not used") && notes.contains(why), "{notes}");
    }
    // The last position that was cleaned away is the one that was read: nothing is missing.
    fake.change(|shop| {
        *shop = captured();
        shop.instances.as_mut().unwrap()[0].1 = 0x21;
    });
    let next = read(&url, after(ChangeDetection::Log, &first.resume)).await.unwrap();
    assert_eq!(next.plan.extent, Extent::Log);
}

/// DDL: a second instance has the new column, and the first the past.
#[tokio::test]
async fn the_older_instance_is_read_until_the_newer_has_begun() {
    let fake = Fake::new(captured());
    let url = fake.server.url();
    let first = read(&url, request(ChangeDetection::Log)).await.unwrap();
    let settled = Watermark::new(first.resume.as_str().replace(r#","ahead":"unknown""#, ""));
    let from = |at: u128| Watermark::new(settled.as_str().replace(&lsn(0x20), &lsn(at)));
    fake.change(|shop| {
        let columns = vec!["id", "name"];
        shop.instances = Some(vec![("dbo_t_2", 0x40, columns.clone()), ("dbo_t", 0x10, columns)]);
        (shop.log, shop.newest, shop.now) = (vec![(0x50, gone(1))], Some((0x50, 60)), 60);
    });
    for (at, table) in
        [(0x20, "[cdc].[dbo_t_CT]"), (0x3F, "[cdc].[dbo_t_2_CT]"), (0x45, "[cdc].[dbo_t_2_CT]")]
    {
        let pass = read(&url, after(ChangeDetection::Log, &from(at))).await.unwrap();
        assert!(pass.plan.statement.contains(table), "{at:x}: {}", pass.plan.statement);
        assert_eq!(pass.rows, ["1 | was | 1"]);
    }
    // What the older one never had, it cannot tell: the table is read.
    fake.change(|shop| shop.instances.as_mut().unwrap()[1].2 = vec!["id"]);
    let anew = read(&url, after(ChangeDetection::Log, &from(0x20))).await.unwrap();
    assert_eq!((anew.plan.extent, anew.plan.continues), (Extent::Whole, false));
    let on = read(&url, after(ChangeDetection::Log, &from(0x3F))).await.unwrap();
    assert_eq!(on.plan.extent, Extent::Log);
    // No instance has it: nothing is read past it.
    fake.change(|shop| shop.instances = Some(vec![("dbo_t", 0x10, vec!["id"])]));
    let error = read(&url, after(ChangeDetection::Log, &from(0x20))).await.unwrap_err();
    assert_eq!(error.message(), "no capture instance has the column `name`");
    assert!(error.hint_text().unwrap().contains("sp_cdc_enable_table"), "{error:?}");
}

#[tokio::test]
async fn a_capture_job_that_stopped_is_found() {
    let fake = Fake::new(captured());
    let source = connectors::source(&Connection::parse("shop", &fake.server.url()).unwrap()).unwrap();
    let about_the_job = async |change| {
        let findings = source.preflight(&request(change)).await.unwrap();
        findings.into_iter().find(|finding| finding.message.contains("capture job"))
    };
    assert!(about_the_job(ChangeDetection::Log).await.is_none());
    fake.change(|shop| shop.now = 7200);
    let finding = about_the_job(ChangeDetection::Log).await.unwrap();
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.message.contains("119 minutes behind") || finding.message.contains("120 minutes behind"));
    assert!(finding.remedy.unwrap().contains("sp_cdc_start_job"));
    // A run says it too.
    let pass = read(&fake.server.url(), request(ChangeDetection::Log)).await.unwrap();
    assert!(pass.plan.notes.iter().any(|note| note.contains("minutes behind")), "{:?}", pass.plan.notes);
    // It never ran.
    fake.change(|shop| shop.newest = None);
    let finding = about_the_job(ChangeDetection::Log).await.unwrap();
    assert_eq!(finding.severity, Severity::Error);
    let error = read(&fake.server.url(), request(ChangeDetection::Log)).await.unwrap_err();
    assert_eq!(error.message(), "the capture job has not captured anything yet");
}

#[tokio::test]
async fn change_tables_that_may_not_be_seen_say_which_right_is_missing() {
    let fake = Fake::new(captured());
    fake.server.trouble(When::Has("cdc.change_tables"), Trouble::Error(229));
    let error = read(&fake.server.url(), request(ChangeDetection::Log)).await.unwrap_err();
    assert_eq!(error.message(), "the user may not see the change tables");
    assert!(error.hint_text().unwrap().contains("GRANT SELECT ON SCHEMA::cdc"), "{error:?}");
}

#[tokio::test]
async fn a_history_is_read_between_begins_and_one_that_forgot_starts_anew() {
    let mut shop = Shop::people();
    shop.history = Some((77, 30));
    let fake = Fake::new(shop);
    let url = fake.server.url();
    let first = read(&url, request(ChangeDetection::Auto)).await.unwrap();
    assert_eq!((first.plan.change, first.plan.extent), (ChangeDetection::Temporal, Extent::Whole));
    fake.change(|shop| shop.changes = vec![gone(2), changed(3, "cid")]);
    let next = read(&url, after(ChangeDetection::Temporal, &first.resume)).await.unwrap();
    assert_eq!(
        (next.plan.extent, &next.rows[..]),
        (Extent::Log, &["2 | was | 1".into(), "3 | cid | 0".into()][..])
    );
    // The horizon is taken before the transaction that reads.
    let log = fake.server.log();
    let place = |part: &str| log.iter().rposition(|sql| sql.contains(part)).unwrap();
    assert!(place("dm_tran_active_transactions") < place("LEVEL SNAPSHOT"));
    assert!(place("LEVEL SNAPSHOT") < place("FROM [dbo].[t_history]"));
    type Change = fn(&mut Shop);
    let changes: [(Change, &str); 2] = [
        (|shop| shop.history = Some((78, 30)), "another history"),
        (|shop| shop.history = Some((77, -1)), ""),
    ];
    for (change, why) in changes {
        fake.change(change);
        let pass = read(&url, after(ChangeDetection::Temporal, &first.resume)).await.unwrap();
        let notes = pass.plan.notes.join("\n");
        assert_eq!(pass.plan.extent == Extent::Whole, !why.is_empty(), "{notes}");
        assert!(notes.contains(why), "{notes}");
    }
    // An old position is beyond what is kept.
    fake.change(|shop| shop.history = Some((77, 30)));
    let old = first.resume.as_str().replace(r#""at":"17"#, r#""at":"16"#);
    let pass = read(&url, after(ChangeDetection::Temporal, &Watermark::new(old))).await.unwrap();
    assert!(pass.plan.notes.join("\n").contains("retention"), "{:?}", pass.plan.notes);
    assert_eq!((pass.plan.extent, pass.plan.continues), (Extent::Whole, false));
}

/// A column that is added between the plan and the read: the pass begins anew, with it.
#[tokio::test]
async fn a_column_added_while_a_read_begins_is_not_left_out() {
    let fake = Fake::new(Shop::people());
    fake.change(|shop| shop.altered = Some(("age", "int", 4, 0, Type::Int)));
    let error = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap_err();
    assert_eq!((error.message(), error.kind()), ("the table was altered just now", ErrorKind::Transient));
    fake.change(|shop| shop.rows.iter_mut().for_each(|row| row.push(Value::Null)));
    let next = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap();
    assert_eq!(next.rows, ["1 | ann | NULL", "2 | bob | NULL"]);
}

/// The whole way: change tables → lake → SQLite, with an update, a delete, and the same window again.
#[test]
fn captured_changes_arrive_at_the_other_end() {
    let fake = Fake::new(captured());
    let way = Way::new(&fake, "change: log");
    assert_eq!(way.pass(), ["1 ann", "2 bob"]);
    // The first read saw what is only captured now: it does not go back to `bo`.
    fake.change(|shop| {
        shop.log = vec![(0x25, changed(2, "bo"))];
        (shop.newest, shop.now) = (Some((0x25, 2)), 10);
    });
    assert_eq!(way.pass(), ["1 ann", "2 bob"]);
    fake.change(|shop| {
        shop.log = vec![(0x26, changed(2, "bob")), (0x27, gone(1)), (0x28, changed(3, "cid"))];
        (shop.newest, shop.now) = (Some((0x30, 15)), 20);
    });
    assert_eq!(way.pass(), ["2 bob", "3 cid"]);
    fake.change(|shop| {
        (shop.log, shop.newest, shop.now) = (vec![(0x31, changed(3, "cyd"))], Some((0x31, 30)), 40)
    });
    assert_eq!(way.pass(), ["2 bob", "3 cyd"]);
}
