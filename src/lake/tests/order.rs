//! The order of rows that queries need not make, because files have it.

use iceberg::TableUpdate;

use super::*;

impl History {
    async fn sorted_by(terms: &[&str]) -> Self {
        let mut history = Self::new(TableMode::Merge).await;
        history.sort_by(terms).await;
        history
    }

    async fn sort_by(&mut self, terms: &[&str]) {
        let terms: Vec<String> = terms.iter().map(|term| (*term).to_owned()).collect();
        let table = &self.table;
        let sort_order = sort::order(table.table.metadata().current_schema(), &terms).unwrap();
        let updates = vec![
            TableUpdate::AddSortOrder { sort_order },
            TableUpdate::SetDefaultSortOrder { sort_order_id: -1 },
        ];
        self.table.table = table.catalog.commit(&table.table, Vec::new(), updates).await.unwrap();
    }

    /// A file for each of these pairs of keys, each with a value of its own.
    async fn pairs(&mut self, keys: &[[i64; 2]]) {
        for [a, b] in keys {
            self.upsert(&[(*b, Some(-*b)), (*a, Some(-*a))]).await;
        }
    }

    async fn sorts(&self, sql: &str) -> bool {
        self.sql(&format!("explain {sql}")).await.contains("SortExec")
    }
}

const BY_ID: &str = "select id from t order by id";

#[tokio::test]
async fn files_that_follow_each_other_are_not_sorted_again() {
    let mut history = History::sorted_by(&["id"]).await;
    history.pairs(&[[11, 12], [1, 3], [40, 41], [7, 9], [20, 29]]).await;
    assert!(!history.sorts(BY_ID).await);
    assert!(!history.sorts("select note from t where v < 0 order by id limit 3").await);
    assert!(history.sorts("select id from t order by v").await);
    expect![[r#"
        +----+
        | id |
        +----+
        | 1  |
        | 3  |
        | 7  |
        | 9  |
        | 11 |
        | 12 |
        | 20 |
        | 29 |
        | 40 |
        | 41 |
        +----+
    "#]]
    .assert_eq(&history.sql(BY_ID).await);
    // Hidden rows leave the others in order.
    history.delete(&[9, 40]).await;
    assert!(!history.sorts(BY_ID).await);
    // One that lies between those of another file.
    history.pairs(&[[2, 50]]).await;
    assert!(history.sorts(BY_ID).await);
}

#[tokio::test]
async fn files_without_the_order_of_now_are_sorted() {
    let mut history = History::new(TableMode::Merge).await;
    history.pairs(&[[1, 2]]).await;
    history.sort_by(&["id"]).await;
    assert!(history.sorts(BY_ID).await, "written before");
    let mut history = History::sorted_by(&["id desc"]).await;
    history.pairs(&[[1, 2], [3, 4], [5, 6]]).await;
    assert!(!history.sorts("select id from t order by id desc").await);
    history.sort_by(&["id"]).await;
    assert!(history.sorts(BY_ID).await, "written in another order");
    // Texts have collations; another engine may mean another one.
    let mut history = History::sorted_by(&["note"]).await;
    history.pairs(&[[1, 2]]).await;
    assert!(history.sorts("select note from t order by note").await);
}

/// A row's place by an order.
type Place = fn((i64, Option<i64>)) -> (i64, i64);

/// Whatever is believed of the files: the rows come in order.
#[tokio::test]
async fn rows_come_in_order() {
    let orders: [(&[&str], Place); 5] = [
        (&["id"], |(id, _)| (id, 0)),
        (&["id desc"], |(id, _)| (-id, 0)),
        (&["v asc nulls first", "id"], |(id, v)| (v.unwrap_or(i64::MIN), id)),
        (&["v asc nulls last", "id"], |(id, v)| (v.unwrap_or(i64::MAX), id)),
        (&["v desc nulls last", "id desc"], |(id, v)| (v.map_or(i64::MAX, |v| -v), -id)),
    ];
    let mut chance = 7_u64;
    let mut next = |below: i64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) as i64 % below
    };
    let mut spared = 0;
    for (terms, place) in orders {
        for step in [3, 10, 40] {
            let mut history = History::sorted_by(terms).await;
            let mut model = Model::new();
            for file in 0..5 {
                let value = |next: &mut dyn FnMut(i64) -> i64| file * step + next(10);
                let rows: Model = (0..4)
                    .map(|_| {
                        let value = value(&mut next);
                        (value * 10 + next(10), (next(30) > 0).then_some(value))
                    })
                    .collect();
                model.extend(rows.iter().map(|(id, v)| (*id, *v)));
                history.upsert(&rows.into_iter().collect::<Vec<_>>()).await;
            }
            let query = format!("select note, id, v from t order by {}", terms.join(", "));
            spared += u32::from(!history.sorts(&query).await);
            let session = query::session(&history.lake, budget(), None).await.unwrap();
            let rows = query::sql(&session, &query).await.unwrap().collect().await.unwrap();
            let rows: Vec<_> = rows.iter().flat_map(values).collect();
            let mut expected: Vec<_> = model.into_iter().collect();
            expected.sort_by_key(|row| place(*row));
            assert_eq!(rows, expected, "{terms:?} {step}");
        }
    }
    assert!((3..15).contains(&spared), "some have the order and some have not: {spared}");
}
