//! MySQL and MariaDB as a source, against a real MariaDB: what comes out of it is what is in it.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Float64Type, Int64Type};
use arrow::util::display::array_value_to_string;
use expect_test::{Expect, expect};
use frazil::connection::Connection;
use frazil::delta::Watermark;
use frazil::source::{ChangeDetection, OutOfRange, ReadPlan, ReadRequest, Source};
use frazil::table::{SOURCE_TYPE, TableId};
use frazil::{ErrorKind, connectors};
use futures::TryStreamExt;
use mysql_async::prelude::Queryable;

use crate::fixture::{self, MariaDatabase, read_request};

pub(crate) fn open(url: &str) -> Arc<dyn Source> {
    connectors::source(&Connection::parse("shop", url).unwrap()).unwrap()
}

fn request(db: &MariaDatabase, table: &str, change: ChangeDetection) -> ReadRequest {
    read_request(TableId::new(db.name(), table), change)
}

/// What a pass read.
pub(crate) struct Read {
    plan: ReadPlan,
    pub(crate) batches: Vec<RecordBatch>,
    /// After each portion.
    pub(crate) resume: Vec<Watermark>,
}

pub(crate) async fn read(source: &dyn Source, request: ReadRequest) -> frazil::Result<Read> {
    let mut reading = source.open(request).await?;
    let (mut batches, mut resume) = (Vec::new(), Vec::new());
    while let Some(portion) = reading.next().await? {
        for rows in futures::future::try_join_all(
            portion.streams.into_iter().map(TryStreamExt::try_collect::<Vec<_>>),
        )
        .await?
        {
            batches.extend(rows);
        }
        resume.push(portion.resume);
    }
    Ok(Read { plan: reading.plan().clone(), batches, resume })
}

impl Read {
    /// The values of one row's columns, with names and types.
    fn row(&self, row: usize) -> String {
        let batch = &self.batches[0];
        let cell = |(field, column): (&Arc<arrow::datatypes::Field>, &arrow::array::ArrayRef)| {
            let text = match column.is_null(row) {
                true => "∅".to_owned(),
                false => array_value_to_string(column, row).unwrap(),
            };
            format!("{} {} = {text}", field.name(), field.data_type())
        };
        batch.schema().fields().iter().zip(batch.columns()).map(cell).collect::<Vec<_>>().join("\n")
    }

    /// One column of whole numbers, sorted.
    fn ids(&self) -> Vec<i64> {
        let ids =
            self.batches.iter().flat_map(|batch| batch["id"].as_primitive::<Int64Type>().values().to_vec());
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_described_and_every_value_arrives() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("types").await;
    db.run(
        "CREATE TABLE t (id bigint PRIMARY KEY AUTO_INCREMENT, i1 tinyint, u1 tinyint unsigned, yes tinyint(1), i3 mediumint,
             i4 int, u4 int unsigned zerofill, u8 bigint unsigned, f float, d double, n decimal(38,10), wide decimal(65,30),
             c char(5), v varchar(20) CHARACTER SET latin1, t longtext, j json, e enum('a','b'), s set('x','y'),
             b binary(3), vb varbinary(10), bl longblob, b1 bit(1), b9 bit(9), b64 bit(64), y year, da date, ti time(6),
             dt datetime(6), ts timestamp(6) NULL, id6 uuid, ip inet6, p point, g bigint AS (id * 2), hidden int INVISIBLE DEFAULT 7)
             ENGINE=InnoDB;
         INSERT INTO t (i1, u1, yes, i3, i4, u4, u8, f, d, n, wide, c, v, t, j, e, s, b, vb, bl, b1, b9, b64, y, da, ti, dt, ts, id6, ip, p)
         VALUES (-128, 255, 1, -8388608, -2147483648, 4294967295, 18446744073709551615, 16777217.0, 0.1,
             -9999999999999999999999999999.9999999999, 12345678901234567890123456789012345.678901234567890123456789012345,
             'ab', 'caf\u{e9}', '\u{1f980} ''it''', '{\"a\":  1}', 'b', 'x,y', x'00ff', x'', x'000a5c09ff', b'1', b'100000001',
             18446744073709551615, 2155, '9999-12-31', '23:59:59.999999', '0001-01-01 00:00:00.000001',
             '2038-01-19 03:14:07.999999', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::1', ST_GeomFromText('POINT(1 2)'))",
    )
    .await;
    let source = open(&db.url());
    let described = source.table(&TableId::bare("t")).await.unwrap();
    let of = |name: &str| described.column(name).unwrap();
    assert_eq!(of("u4").source_type, "int unsigned");
    assert_eq!(of("v").field.metadata()[SOURCE_TYPE], "mysql:varchar(20)");
    assert!(of("g").generated && of("id").identity && of("id").indexed);
    assert_eq!(described.primary_key().unwrap(), ["id"]);

    let found = read(&*source, request(&db, "t", ChangeDetection::Full)).await.unwrap();
    expect![[r#"
        id Int64 = 1
        i1 Int32 = -128
        u1 Int32 = 255
        yes Int32 = 1
        i3 Int32 = -8388608
        i4 Int32 = -2147483648
        u4 Int64 = 4294967295
        u8 Decimal128(20, 0) = 18446744073709551615
        f Float32 = 16777216.0
        d Float64 = 0.1
        n Decimal128(38, 10) = -9999999999999999999999999999.9999999999
        wide Utf8 = 12345678901234567890123456789012345.678901234567890123456789012345
        c Utf8 = ab
        v Utf8 = café
        t Utf8 = 🦀 'it'
        j Utf8 = {"a":  1}
        e Utf8 = b
        s Utf8 = x,y
        b Binary = 00ff00
        vb Binary = 
        bl Binary = 000a5c09ff
        b1 Boolean = true
        b9 Int64 = 257
        b64 Decimal128(20, 0) = 18446744073709551615
        y Int32 = 2155
        da Date32 = 9999-12-31
        ti Time64(µs) = 23:59:59.999999
        dt Timestamp(µs) = 0001-01-01T00:00:00.000001
        ts Timestamp(µs, "UTC") = 2038-01-19T03:14:07.999999Z
        id6 FixedSizeBinary(16) = a0eebc999c0b4ef8bb6d6bb9bd380a11
        ip Utf8 = ::1
        p Binary = 0101000000000000000000f03f0000000000000040
        g Int64 = 2
        hidden Int32 = 7"#]]
    .assert_eq(&found.row(0));
    // As text a `float` has six digits, and would be another number.
    assert_eq!(found.batches[0]["f"].as_primitive::<Float32Type>().value(0), 16_777_217_f32);
    assert_eq!(found.batches[0]["d"].as_primitive::<Float64Type>().value(0), 0.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_place_in_the_lake_goes_by_policy() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("odd").await;
    db.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, d date NOT NULL, at datetime NOT NULL, ti time);
         INSERT INTO t VALUES (1, '0000-00-00', '2020-02-00 10:00:00', '-838:59:59')",
    )
    .await;
    let source = open(&db.url());
    let error = read(&*source, request(&db, "t", ChangeDetection::Full)).await.err().unwrap();
    expect![[r#"
        data: a date that is no day, like 0000-00-00, has no place in the lake's type (column: d)
          hint: set `values: { out_of_range: null }` or `clamp`, or carry the column as `text`"#]]
    .assert_eq(&format!("{error:?}"));
    let mut clamped = request(&db, "t", ChangeDetection::Full);
    clamped.values.out_of_range = OutOfRange::Clamp;
    clamped.values.types.insert("ti".into(), "text".into());
    let found = read(&*source, clamped).await.unwrap();
    expect![[r#"
        id Int64 = 1
        d Date32 = 0001-01-01
        at Timestamp(µs) = 2020-02-01T10:00:00
        ti Utf8 = -838:59:59
        1 values of `d` were replaced by `out_of_range`
        1 values of `at` were replaced by `out_of_range`"#]]
    .assert_eq(&(found.row(0) + "\n" + &found.plan.notes.join("\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_found_by_what_the_server_sets_and_by_numbers() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("cursors").await;
    db.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, name text, seen datetime, at timestamp(6) NOT NULL
             DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6), KEY (at));
         CREATE TABLE log (id bigint PRIMARY KEY AUTO_INCREMENT, name text);
         INSERT INTO t (id, name) SELECT seq, seq FROM seq_1_to_5;
         INSERT INTO log (name) VALUES ('1'), ('2'), ('3'), ('4'), ('5')",
    )
    .await;
    let source = open(&db.url());
    let first = read(&*source, request(&db, "t", ChangeDetection::Auto)).await.unwrap();
    assert_eq!((first.plan.change, first.ids()), (ChangeDetection::Timestamp, vec![1, 2, 3, 4, 5]));
    expect![[r#"
        changes are found by `at`: the server sets it with every change, an index serves it
        deletes leave no trace in a cursor; `change: full` sees them
        read in ranges of (id)"#]]
    .assert_eq(&own_notes(&first.plan));
    db.run("UPDATE t SET name = 'x' WHERE id = 3;\nINSERT INTO t (id) VALUES (6)").await;
    let mut next = request(&db, "t", ChangeDetection::Auto);
    next.from = first.resume.last().cloned();
    next.from = Some(read_until(&*source, next.clone(), &[3, 6]).await);

    // A transaction that wrote before and is not over holds the horizon back.
    let mut open_transaction = db.client().await;
    open_transaction.query_drop("BEGIN").await.unwrap();
    open_transaction.query_drop("UPDATE t SET name = 'late' WHERE id = 1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let held = read(&*source, next.clone()).await.unwrap();
    assert!(
        held.plan.notes.iter().any(|note| note.starts_with("held back by the transaction of session")),
        "{:?}",
        held.plan.notes
    );
    open_transaction.query_drop("COMMIT").await.unwrap();
    next.from = held.resume.last().cloned();
    read_until(&*source, next, &[1]).await;

    let mut numbers = request(&db, "log", ChangeDetection::Auto);
    numbers.keyed = false;
    assert_eq!(source.plan(&numbers).await.unwrap().change, ChangeDetection::Id);
    numbers.from = Some(read_until(&*source, numbers.clone(), &[1, 2, 3, 4, 5]).await);
    // 6 is drawn and open, 7 is committed: the next pass may not go past 6.
    open_transaction.query_drop("BEGIN").await.unwrap();
    open_transaction.query_drop("INSERT INTO log (name) VALUES ('6')").await.unwrap();
    db.run("INSERT INTO log (name) VALUES ('7')").await;
    let held = read(&*source, numbers.clone()).await.unwrap();
    assert_eq!(held.ids(), Vec::<i64>::new());
    open_transaction.query_drop("COMMIT").await.unwrap();
    numbers.from = held.resume.last().cloned();
    read_until(&*source, numbers, &[6, 7]).await;
}

/// What a plan says but for who holds it back: other tests write to the server, too.
fn own_notes(plan: &ReadPlan) -> String {
    let own = plan.notes.iter().filter(|note| !note.starts_with("held back by "));
    own.cloned().collect::<Vec<_>>().join("\n")
}

/// Passes until these were read, each at least once: what other tests write at the moment may hold the
/// horizon back.
async fn read_until(source: &dyn Source, mut request: ReadRequest, wanted: &[i64]) -> Watermark {
    let mut found = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let pass = read(source, request.clone()).await.unwrap();
        if !request.keyed {
            assert!(pass.ids().iter().all(|id| !found.contains(id)), "{:?} once more", pass.ids());
        }
        found.extend(pass.ids());
        request.from = pass.resume.last().cloned();
        if wanted.iter().all(|id| found.contains(id)) {
            return request.from.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("only {found:?} of {wanted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_read_by_key_is_cut_and_goes_on() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("ranges").await;
    // The order is the collation's: `a` and `B` are where people look for them, not where their bytes are.
    db.run(
        "CREATE TABLE t (name varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci, part int, id bigint NOT NULL,
             pad varchar(2000), updated_at timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
             PRIMARY KEY (name, part));
         INSERT INTO t (name, part, id, pad) SELECT CONCAT(IF(seq % 2, 'a', 'B'), seq DIV 7, '\\\\''\u{e4}'), seq % 7, seq, REPEAT('x', 1000)
             FROM seq_1_to_3000;
         ANALYZE TABLE t",
    )
    .await;
    let source = open(&db.url());
    let mut cut = request(&db, "t", ChangeDetection::Timestamp);
    cut.key = vec!["name".into(), "part".into()];
    cut.portion_bytes = 1 << 20;
    let whole = read(&*source, cut.clone()).await.unwrap();
    assert!(whole.plan.resumable && whole.resume.len() > 2, "{} portions", whole.resume.len());
    assert_eq!(whole.ids(), (1..=3000).collect::<Vec<_>>());
    // From each bound on, the rest and nothing else: together with what came before it is all, once.
    let mut before = 0;
    for (portion, resume) in whole.resume.iter().enumerate().take(2) {
        let mut rest = cut.clone();
        rest.from = Some(resume.clone());
        let rest = read(&*source, rest).await.unwrap();
        assert!(rest.plan.continues, "{:?}", rest.plan.notes);
        assert!(3000 - rest.ids().len() > before, "portion {portion}");
        before = 3000 - rest.ids().len();
    }
    // A moment of creation is known to the second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    db.run("CREATE TABLE anew LIKE t;\nDROP TABLE t;\nRENAME TABLE anew TO t").await;
    let mut after = cut;
    after.from = Some(whole.resume[0].clone());
    let anew = source.plan(&after).await.unwrap();
    assert!(!anew.continues, "{:?}", anew.notes);
}

async fn check(outcome: frazil::Result<impl Sized>, db: &MariaDatabase, expected: Expect) {
    let error = outcome.err().expect("it cannot work");
    let port = format!(":{}", db.port());
    let text = format!("{error:?}").replace(&port, ":PORT").replace(db.name(), "DB");
    assert!(!text.contains(fixture::MARIADB_PASSWORD), "{text}");
    expected.assert_eq(&text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said_with_what_to_do() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("wrong").await;
    let user = fixture::unique("u").chars().rev().take(20).collect::<String>();
    db.run(&format!(
        "CREATE TABLE orders (id bigint PRIMARY KEY, updated_at timestamp);
         CREATE TABLE hidden (id bigint PRIMARY KEY);
         CREATE USER '{user}'@'%' IDENTIFIED BY 'pw';
         GRANT SELECT ON orders TO '{user}'@'%'"
    ))
    .await;
    let wrong = open(&db.url_as("frazil", "not it", db.port()));
    check(wrong.tables().await, &db, expect![[r#"
        permission: access denied for user 'frazil'@'127.0.0.1' (using password: YES) (number: 1045, connection: shop, host: 127.0.0.1:PORT)
          hint: check user and password in the connection's URL"#]]).await;
    let elsewhere = open(&db.url().replace(db.name(), "no_such_database"));
    check(
        elsewhere.tables().await,
        &db,
        expect![[r#"
        config: unknown database 'no_such_database' (number: 1049, connection: shop, host: 127.0.0.1:PORT)
          hint: check the database's name in the connection's URL"#]],
    )
    .await;
    let source = open(&db.url());
    check(
        source.table(&TableId::bare("hiden")).await,
        &db,
        expect![[r#"
        config: table does not exist (table: hiden)
          hint: did you mean `DB.hidden`?"#]],
    )
    .await;
    let mut tracked = request(&db, "orders", ChangeDetection::Tracking);
    check(
        source.plan(&tracked).await,
        &db,
        expect![[r#"
        config: `change: tracking` is not for MySQL and MariaDB (table: DB.orders, connection: shop)
          hint: use `auto`, `timestamp`, `id`, `version`, `trigger` or `full`"#]],
    )
    .await;
    tracked.change = ChangeDetection::Auto;
    tracked.filter = Some("no such = thing".into());
    let error = read(&*source, tracked.clone()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");

    let limited = open(&db.url_as(&user, "pw", db.port()));
    assert_eq!(limited.tables().await.unwrap().len(), 1, "what is not granted is not there");
    tracked.filter = None;
    let plan = limited.plan(&tracked).await.unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("GRANT PROCESS")), "{:?}", plan.notes);
    let findings = limited.preflight(&tracked).await.unwrap();
    assert!(
        findings.iter().any(|finding| finding.remedy.as_deref() == Some("GRANT PROCESS ON *.* TO <user>")),
        "{findings:?}"
    );
    db.run(&format!("DROP USER '{user}'@'%'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_and_checked_as_asked() {
    let Some(server) = fixture::mariadb().await else { return };
    let Some(authority) = server.authority() else { return fixture::skip("openssl") };
    let db = server.database("tls").await;
    for (options, works) in [
        ("ssl-mode=disabled".to_owned(), true),
        ("ssl-mode=required".to_owned(), true),
        (format!("ssl-mode=verify_identity&ssl-ca={}", authority.display()), true),
        // Nobody's authority signed it.
        ("ssl-mode=verify_ca".to_owned(), false),
    ] {
        let source = open(&format!("{}?{options}", db.url()));
        match source.tables().await {
            Ok(_) => assert!(works, "{options}"),
            Err(error) => assert!(!works && error.kind() == ErrorKind::Config, "{options}: {error:?}"),
        }
    }
}
