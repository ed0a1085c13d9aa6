//! Rows with one key that come in another order than they happened.

use super::*;
use crate::lake::Wanted;

impl History {
    fn in_order(&mut self, by_event: bool) {
        let order = EventOrder { column: "v".to_owned(), by_event, known_to: None };
        self.table.order_by(Some(order));
    }
}

/// Rows that come together, and keys that go after them.
type Step = (Vec<(i64, Option<i64>)>, Vec<i64>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rows = prop::collection::vec((0i64..6, prop::option::weighted(0.8, 0i64..30)), 1..12);
    prop::collection::vec((rows, prop::collection::vec(0i64..6, 0..2)), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The greatest value of each key stays, of those that came since it was deleted.
    #[test]
    fn the_newest_by_event_stays(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut history = History::new(TableMode::Merge).await;
            history.in_order(true);
            let mut model = Model::new();
            for (rows, gone) in steps {
                let (mut outdated, before) = (0, model.clone());
                let newest = rows.iter().fold(Model::new(), |mut newest, (id, value)| {
                    let kept = newest.entry(*id).or_insert(*value);
                    *kept = (*kept).max(*value);
                    newest
                });
                for (id, value) in newest {
                    let kept = model.entry(id).or_insert(value);
                    outdated += u64::from(*kept > value);
                    *kept = (*kept).max(value);
                }
                history.upsert(&rows).await;
                assert_eq!(history.read(None).await, model);
                assert_eq!(history.table.lateness().outdated, outdated, "{rows:?} on {before:?}");
                let counts = history.table.row_counts();
                let inserted = model.keys().filter(|id| !before.contains_key(id)).count();
                assert_eq!(counts.inserted, inserted as u64, "{counts:?} for {rows:?} on {before:?}");
                if !gone.is_empty() {
                    history.delete(&gone).await;
                }
                model.retain(|id, _| !gone.contains(id));
                assert_eq!(history.read(None).await, model);
            }
        });
    }
}

/// Where the source has one row of each key, its word is the last.
#[tokio::test]
async fn what_the_source_has_now_stays_whatever_its_clock_says() {
    let mut history = History::new(TableMode::Merge).await;
    history.in_order(false);
    history.upsert(&[(1, Some(9)), (2, Some(9))]).await;
    history.upsert(&[(1, Some(3)), (2, None)]).await;
    assert_eq!(history.read(None).await, Model::from([(1, Some(3)), (2, None)]));
}

/// Files from before the order column came have no ranks, and give way.
#[tokio::test]
async fn what_was_written_before_the_order_was_known_gives_way() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(1, Some(9)), (2, Some(9))]).await;
    let mut fields: Vec<_> = columns().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("at", DataType::Int64, true)));
    let wanted = Arc::new(Schema::new(fields));
    let evolution = history.table.evolution(&Wanted::columns(&wanted)).unwrap();
    history.table.evolve(&evolution).await.unwrap();
    history.table.order_by(Some(EventOrder { column: "at".into(), by_event: true, known_to: None }));
    history.upsert(&[(1, Some(3))]).await;
    assert_eq!(history.read(None).await, Model::from([(1, Some(3)), (2, Some(9))]));
}
