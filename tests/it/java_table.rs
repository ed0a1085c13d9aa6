//! A table that Iceberg's own library in Java made (`java/Make.java`, its data files by `java/make.py`):
//! compressed metadata, columns renamed, moved and widened at any depth, a partition spec that came later,
//! position and equality deletes, a tag. DuckDB and chdb read the same rows of it.
//!
//! Its files name each other by `file:/frazil-java/…`, so the tests put a directory of theirs there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use datafusion::execution::object_store::ObjectStoreRegistry;
use expect_test::{Expect, expect};
use frazil::lake::{Lake, LakeSettings, Wanted};
use frazil::memory::Budget;
use frazil::query;
use frazil::table::TableId;
use object_store::local::LocalFileSystem;

struct Java {
    directory: tempfile::TempDir,
}

impl Java {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/java/frazil-java");
        copy(&from, &directory.path().join("frazil-java"));
        Self { directory }
    }

    async fn lake(&self) -> Lake {
        let settings = LakeSettings {
            warehouse: "file:///frazil-java".into(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        let lake = Lake::open(&settings).await.unwrap();
        let here = LocalFileSystem::new_with_prefix(self.directory.path()).unwrap();
        lake.stores().register_store(&"file:///".parse().unwrap(), Arc::new(here));
        lake
    }

    async fn check(&self, sql: &str, expected: Expect) {
        let budget = Budget::new(256 << 20, 1).unwrap();
        let session = query::session(&self.lake().await, budget, None).await.unwrap();
        let rows = query::sql(&session, sql).await.unwrap().collect().await.unwrap();
        expected.assert_eq(&format!("{}\n", pretty_format_batches(&rows).unwrap()));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_in_java_is_read() {
    let java = Java::new();
    java.check("select * from orders order by id", expect![[r#"
        +---------------+-------+---------------+----------------------+--------------+-------------------------------+--------+
        | id            | title | price         | at                   | tags         | place                         | note   |
        +---------------+-------+---------------+----------------------+--------------+-------------------------------+--------+
        | 1             | ann   | 1.50          | 2024-01-01T12:00:00Z | [x, ]        | {city: Oslo, lat: 0.5, zip: } |        |
        | 3             |       | -3.25         |                      |              | {city: Rome, lat: , zip: }    |        |
        | 4             | di    | 4.00          | 2024-01-04T12:00:00Z | [y]          | {city: , lat: 1.25, zip: }    |        |
        | 1099511627781 | e5    | 1234567895.00 | 2024-01-05T12:00:00Z | [z]          | {city: c5, lat: 0.5, zip: 5}  | note 5 |
        | 1099511627782 | e6    | 1234567896.00 | 2024-01-06T12:00:00Z | [z, z]       | {city: c6, lat: 0.6, zip: 6}  | note 6 |
        | 1099511627784 | f8    | 1234567898.00 | 2024-01-08T12:00:00Z | [z, z, z, z] | {city: c8, lat: 0.8, zip: 8}  | note 8 |
        +---------------+-------+---------------+----------------------+--------------+-------------------------------+--------+
    "#]]).await;
    java.check(
        "select count(*) as rows from orders where title >= 'f'",
        expect![[r#"
        +------+
        | rows |
        +------+
        | 1    |
        +------+
    "#]],
    )
    .await;
    java.check(
        "select * from orders version as of 'first' order by id",
        expect![[r#"
        +----+------+-------+----------------------+-------+------------------------+
        | id | name | price | at                   | tags  | place                  |
        +----+------+-------+----------------------+-------+------------------------+
        | 1  | ann  | 1.50  | 2024-01-01T12:00:00Z | [x, ] | {lat: 0.5, town: Oslo} |
        | 2  | bo   |       | 2024-01-02T12:00:00Z | []    |                        |
        | 3  |      | -3.25 |                      |       | {lat: , town: Rome}    |
        | 4  | di   | 4.00  | 2024-01-04T12:00:00Z | [y]   | {lat: 1.25, town: }    |
        +----+------+-------+----------------------+-------+------------------------+
    "#]],
    )
    .await;
}

/// The version after is compressed like those before, and Java's columns keep their ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_in_java_is_gone_on_with() {
    let java = Java::new();
    let mut table = java.lake().await.table(&TableId::new("main", "orders")).await.unwrap().unwrap();
    let mut fields = table.schema().unwrap().fields().to_vec();
    fields.push(Arc::new(Field::new("more", DataType::Int32, true)));
    let schema = Arc::new(Schema::new(fields));
    let evolution = table.evolution(&Wanted::columns(&schema)).unwrap();
    table.evolve(&evolution).await.unwrap();
    let next = java.directory.path().join("frazil-java/main/orders/metadata/v8.gz.metadata.json");
    assert!(next.exists());
    java.check(
        "select id, title, more from orders where id < 10 order by id",
        expect![[r#"
        +----+-------+------+
        | id | title | more |
        +----+-------+------+
        | 1  | ann   |      |
        | 3  |       |      |
        | 4  | di    |      |
        +----+-------+------+
    "#]],
    )
    .await;
}
