//! Keys of several columns, of which one rules out most rows.

use super::*;

#[tokio::test]
async fn one_column_of_a_key_may_rule_out_most_rows() {
    for kind in [Kind::Int, Kind::Date, Kind::SmallDecimal] {
        // Too many rows are left; few are; and so few keys that pages are chosen.
        for every in [3, 10, 40] {
            let mut lab = Lab::new(Layout { kind, row_group: 300, ..PLAIN }).await;
            let orders =
                (0..1000).map(|row| Row { a: row / 4 * 100, n: (row % 4) as i32, p: 0 }).collect::<Vec<_>>();
            lab.upsert(&orders, 1000).await;
            let some = orders.iter().filter(|row| row.a / 100 % every == 0);
            // A line that no order has, and an order that is not there.
            let changed = some.map(|row| match row.n {
                2 => Row { n: 9, ..*row },
                3 => Row { a: row.a + 1, ..*row },
                _ => *row,
            });
            let hidden = lab.upsert(&changed.collect::<Vec<_>>(), 1000).await;
            assert_eq!(hidden.old_rows, 250_u64.div_ceil(every as u64) * 2);
        }
    }
}
