//! SQL Server as a source, against the responder of `tds/`, which is no SQL Server: what it shows is
//! which statements go in which order, what becomes of the bytes that come back, and what happens when
//! something goes wrong on the way. What the real server does with the statements is not shown here.

use std::time::Duration;

use expect_test::expect;

use frazil::ErrorKind;
use frazil::delta::Watermark;
use frazil::source::{ChangeDetection, Extent, OutOfRange, SubMicrosecond};

use crate::mssql_shop::{Fake, Shop, Way, read, request, text};
use crate::tds::{ServerError, Trouble, Type, Value, When};

#[tokio::test]
async fn values_come_over_the_wire_as_they_are() {
    let decimal = 10_i128.pow(38) - 1;
    let mut shop = Shop::of(&[
        ("id", "int", 4, 0, Type::Int),
        ("big", "bigint", 8, 0, Type::BigInt),
        ("d38", "decimal", 17, 10, Type::Decimal(38, 10)),
        ("m", "money", 8, 4, Type::Decimal(19, 4)),
        ("dt", "datetime", 8, 3, Type::DateTime),
        ("dt2", "datetime2", 8, 7, Type::DateTime2(7)),
        ("dto", "datetimeoffset", 10, 7, Type::DateTimeOffset(7)),
        ("t", "time", 5, 7, Type::Time(7)),
        ("sdt", "smalldatetime", 4, 0, Type::SmallDateTime),
        ("g", "uniqueidentifier", 16, 0, Type::Guid),
        ("s", "nvarchar", -1, 0, Type::NVarchar(None)),
        ("v", "varchar", 10, 0, Type::Varchar(Some(10))),
        ("b", "varbinary", -1, 0, Type::Varbinary(None)),
        ("f", "float", 8, 0, Type::Float),
        ("y", "bit", 1, 0, Type::Bit),
    ]);
    let long = "x".repeat(70_000);
    shop.rows = vec![
        vec![
            Value::Int(1),
            Value::Int(i64::MIN),
            Value::Decimal(decimal, 10),
            Value::Decimal(9_223_372_036_854_775_807, 4),
            Value::DateTime(-53_690, 1),
            Value::DateTime2(3_652_058, 863_999_999_990),
            Value::DateTimeOffset(719_162, 10, -300),
            Value::Time(863_999_999_990),
            Value::SmallDateTime(65_535, 1439),
            Value::Guid(uuid::Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)),
            text("naïve ☃ 😀"),
            text("é"),
            Value::Bytes(vec![0, 255]),
            Value::Float(0.1),
            Value::Bit(true),
        ],
        std::iter::once(Value::Int(2)).chain(std::iter::repeat_n(Value::Null, 14)).collect(),
    ];
    let fake = Fake::new(shop);
    let pass = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap();
    expect![[r#"
        1 | -9223372036854775808 | 9999999999999999999999999999.9999999999 | 922337203685477.5807 | 1753-01-01T00:00:00.003 | 9999-12-31T23:59:59.999999 | 1970-01-01T00:00:00.000001Z | 23:59:59.999999 | 2079-06-06T23:59:00 | 00112233445566778899aabbccddeeff | naïve ☃ 😀 | é | 00ff | 0.1 | true
        2 | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL"#]]
    .assert_eq(&pass.rows.join("\n"));

    fake.change(|shop| shop.rows[0][10] = text(&long));
    let pass = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap();
    assert!(pass.rows[0].contains(&long));
    // Trap 1: what the server converts is asked for.
    assert!(fake.server.log().iter().any(|sql| sql.contains("CAST([m] AS decimal(19,4))")));
    // Nothing is ever read around a lock.
    let log = fake.server.log().join("\n").to_uppercase();
    assert!(!log.contains("NOLOCK") && !log.contains("READPAST") && log.contains("SNAPSHOT"));
}

/// Trap 7: the server does not check its texts.
#[tokio::test]
async fn a_lone_surrogate_stops_the_pass_or_is_replaced() {
    let mut shop = Shop::people();
    shop.rows[1][1] = Value::Units(vec![0x61, 0xD800, 0x62]);
    let fake = Fake::new(shop);
    let error = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap_err();
    expect![[r#"
        data: a text is not valid UTF-16, which the server does not check
          hint: correct the rows, or set `values: { out_of_range: clamp }` to read `�` in place of what is wrong"#]]
    .assert_eq(&format!("{error:?}"));
    let mut lossy = request(ChangeDetection::Full);
    lossy.values.out_of_range = OutOfRange::Clamp;
    assert_eq!(read(&fake.server.url(), lossy).await.unwrap().rows, ["1 | ann", "2 | a\u{fffd}b"]);
}

#[tokio::test]
async fn a_time_that_is_too_fine_stops_the_pass_or_is_cut() {
    let mut shop = Shop::of(&[("id", "int", 4, 0, Type::Int), ("at", "datetime2", 8, 7, Type::DateTime2(7))]);
    shop.rows = vec![vec![Value::Int(1), Value::DateTime2(719_162, 19)]];
    let fake = Fake::new(shop);
    let error = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap_err();
    assert_eq!(error.to_string(), "a time is finer than a microsecond (column: at)");
    let mut cut = request(ChangeDetection::Full);
    cut.values.sub_microsecond = SubMicrosecond::Truncate;
    let pass = read(&fake.server.url(), cut).await.unwrap();
    assert_eq!(pass.rows, ["1 | 1970-01-01T00:00:00.000001"]);
    assert!(pass.plan.notes.iter().any(|note| note.starts_with("1 values of `at`")), "{:?}", pass.plan.notes);
    let mut exact = request(ChangeDetection::Full);
    exact.values.types = [("at".to_owned(), "timestamp_ns".to_owned())].into();
    assert_eq!(read(&fake.server.url(), exact).await.unwrap().rows, ["1 | 1970-01-01T00:00:00.000001900"]);
}

#[tokio::test]
async fn log_ins_that_fail_say_what_to_do() {
    let fake = Fake::new(Shop::people());
    let url = fake.server.url_for("loader", "wrong");
    let error = read(&url, request(ChangeDetection::Full)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(error.hint_text().unwrap().contains("mixed mode") && !format!("{error:?}").contains("wrong"));
    fake.server.refuse_logins(Some(4060));
    let error = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap_err();
    assert_eq!((error.kind(), error.hint_text().unwrap().contains("online")), (ErrorKind::Config, true));
    // A database that wakes up is asked again, and then given up.
    fake.server.refuse_logins(Some(40613));
    let url = format!("{}&connect_retries=1", fake.server.url());
    let before = fake.server.logins().len();
    let error = read(&url, request(ChangeDetection::Full)).await.unwrap_err();
    assert_eq!((error.kind(), fake.server.logins().len() - before), (ErrorKind::Transient, 2));
}

#[tokio::test]
async fn a_redirected_log_in_goes_where_it_is_sent() {
    let (gateway, machine) = (Fake::new(Shop::people()), Fake::new(Shop::people()));
    gateway.server.route_to("127.0.0.1", machine.server.port());
    let url = format!("{}&application_intent=ReadOnly&application_name=me", gateway.server.url());
    assert_eq!(read(&url, request(ChangeDetection::Full)).await.unwrap().rows.len(), 2);
    let login = &machine.server.logins()[0];
    assert!(login.read_only && login.application == "me" && login.database == "shop");
    // In a circle there is an end.
    machine.server.route_to("127.0.0.1", gateway.server.port());
    let error = read(&url, request(ChangeDetection::Full)).await.unwrap_err();
    assert_eq!(error.message(), "the server redirects us again and again");
}

#[tokio::test]
async fn errors_while_reading_are_told_apart_and_show_no_values() {
    let fake = Fake::new(Shop::people());
    for (number, text, kind) in [
        (229, "The SELECT permission was denied on the object 't'.", ErrorKind::Permission),
        (1205, "Transaction was deadlocked.", ErrorKind::Transient),
        (3960, "Snapshot isolation transaction aborted due to update conflict.", ErrorKind::Transient),
        (
            245,
            "Conversion failed when converting the varchar value 's3cret' to data type int.",
            ErrorKind::Data,
        ),
        (50_000, "raised by a trigger for s3cret", ErrorKind::Data),
    ] {
        fake.change(|shop| shop.refused = Some(ServerError::new(number, text)));
        let error = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{number}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        assert!(error.context().contains(&("number", number.to_string())), "{error:?}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_loses_no_row_silently() {
    let mut shop = Shop::people();
    shop.rows = (0..20_000).map(|id| vec![Value::Int(id), text("somebody")]).collect();
    let fake = Fake::new(shop);
    for bytes in [0, 1, 60, 5_000, 300_000] {
        fake.server.trouble(When::Has("SELECT [id], [name]"), Trouble::CutAnswer(bytes));
        let error = read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{bytes}: {error:?}");
    }
    assert_eq!(fake.server.waiting(), 0);
    assert_eq!(read(&fake.server.url(), request(ChangeDetection::Full)).await.unwrap().rows.len(), 20_000);
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_given_up() {
    let fake = Fake::new(Shop::people());
    fake.server.trouble(When::Has("SELECT [id], [name]"), Trouble::Delay(Duration::from_secs(30)));
    let url = format!("{}&statement_timeout=1", fake.server.url());
    let error = read(&url, request(ChangeDetection::Full)).await.unwrap_err();
    assert_eq!(error.message(), "the server did not answer in time");
    assert_eq!(error.kind(), ErrorKind::Transient);
}

/// What answers here keeps all rows: it is the statements that count.
#[tokio::test]
async fn a_condition_may_end_in_a_comment() {
    let fake = Fake::new(Shop::people());
    let large = "[id] > 1 -- the large ones";
    let mut asked = request(ChangeDetection::Full);
    asked.filter = Some(large.to_owned());
    let pass = read(&fake.server.url(), asked).await.unwrap();
    assert!(pass.plan.statement.contains(large));
    let log = fake.server.log();
    let with: Vec<_> = log.iter().filter(|sql| sql.contains(large)).collect();
    assert!(!with.is_empty(), "{log:?}");
    for sql in with {
        assert!(sql.split(large).skip(1).all(|rest| rest.starts_with("\n)")), "{sql}");
    }
}

#[tokio::test]
async fn row_versions_go_on_below_the_smallest_in_use() {
    let mut shop = Shop::people();
    shop.columns.push(("rv", "timestamp", 8, 0, Type::Binary(8)));
    for (row, version) in shop.rows.iter_mut().zip([1_u8, 2]) {
        row.push(Value::Bytes(vec![0, 0, 0, 0, 0, 0, 0, version]));
    }
    let fake = Fake::new(shop);
    let first = read(&fake.server.url(), request(ChangeDetection::Auto)).await.unwrap();
    assert_eq!((first.plan.change, first.plan.extent), (ChangeDetection::Rowversion, Extent::Whole));
    assert_eq!(first.rows, ["1 | ann | 0000000000000001", "2 | bob | 0000000000000002"]);
    fake.change(|shop| shop.row_version = 107);
    let mut next = request(ChangeDetection::Auto);
    next.from = Some(first.resume);
    let next = read(&fake.server.url(), next).await.unwrap();
    assert_eq!(next.plan.extent, Extent::Changed);
    assert!(
        next.plan.statement.contains("[rv] >= 0x0000000000000064 AND [rv] < 0x000000000000006B"),
        "{}",
        next.plan.statement
    );
    // The bound is taken before the transaction that reads.
    let log = fake.server.log();
    let place = |part: &str| log.iter().rposition(|sql| sql.contains(part)).unwrap();
    assert!(place("MIN_ACTIVE_ROWVERSION") < place("LEVEL SNAPSHOT"));
    assert!(place("LEVEL SNAPSHOT") < place("[rv] >= "));
}

#[tokio::test]
async fn tracked_changes_come_with_deletes_and_a_version_that_is_gone_starts_anew() {
    let mut shop = Shop::people();
    shop.tracked = true;
    let fake = Fake::new(shop);
    let first = read(&fake.server.url(), request(ChangeDetection::Auto)).await.unwrap();
    assert_eq!((first.plan.change, first.plan.extent), (ChangeDetection::Tracking, Extent::Whole));
    let next = |from: &Watermark| {
        let mut next = request(ChangeDetection::Auto);
        next.from = Some(from.clone());
        next
    };
    // Others were written to: no news for this table, and no new position.
    fake.change(|shop| shop.version = 5);
    let idle = read(&fake.server.url(), next(&first.resume)).await.unwrap();
    assert_eq!((idle.plan.extent, idle.rows.len(), &idle.resume), (Extent::Log, 0, &first.resume));
    fake.change(|shop| {
        shop.version = 7;
        shop.changes = vec![
            vec![Value::Int(2), Value::Null, Value::Int(1)],
            vec![Value::Int(3), text("cid"), Value::Int(0)],
        ];
    });
    let changed = read(&fake.server.url(), next(&first.resume)).await.unwrap();
    assert_eq!(changed.rows, ["2 | NULL | 1", "3 | cid | 0"]);
    assert!(changed.resume.as_str().contains(r#""version":"7""#), "{}", changed.resume);
    // Everything in one transaction: the versions, then the changes.
    let log = fake.server.log();
    let place = |part: &str| log.iter().rposition(|sql| sql.contains(part)).unwrap();
    assert!(place("LEVEL SNAPSHOT") < place("CHANGE_TRACKING_MIN_VALID_VERSION"));
    assert!(place("CHANGE_TRACKING_MIN_VALID_VERSION") < place("SYS_CHANGE_OPERATION"));

    type Change = fn(&mut Shop);
    let changes: [(Change, &str); 3] = [
        (|shop| shop.oldest = 6, "forgotten"),
        (|shop| (shop.oldest, shop.version) = (0, 0), "restored"),
        (|shop| (shop.version, shop.fork) = (9, "fork 2"), "restored"),
    ];
    for (change, why) in changes {
        fake.change(change);
        let anew = read(&fake.server.url(), next(&first.resume)).await.unwrap();
        assert_eq!((anew.plan.extent, anew.plan.continues), (Extent::Whole, false));
        let notes = anew.plan.notes.join("\n");
        assert!(notes.contains("the stored position is not used") && notes.contains(why), "{notes}");
    }
}

/// The whole way: SQL Server's protocol → lake → SQLite, with a delete, by the program itself.
#[test]
fn a_deleted_row_is_gone_at_the_other_end() {
    let mut shop = Shop::people();
    shop.tracked = true;
    let fake = Fake::new(shop);
    let way = Way::new(&fake, "change: tracking");
    assert_eq!(way.pass(), ["1 ann", "2 bob"]);
    fake.change(|shop| {
        shop.version = 7;
        shop.changes = vec![
            vec![Value::Int(2), Value::Null, Value::Int(1)],
            vec![Value::Int(1), text("anna"), Value::Int(0)],
            vec![Value::Int(3), text("cid"), Value::Int(0)],
        ];
    });
    assert_eq!(way.pass(), ["1 anna", "3 cid"]);
    // The same changes once more do nothing.
    fake.change(|shop| shop.version = 8);
    assert_eq!(way.pass(), ["1 anna", "3 cid"]);
}
