//! Part of a table: the rows whose keys lie in a range, drawn by chance.
//!
//! The range is chosen by what the lake's metadata say of its files, each as likely as it has rows. Databases
//! are asked for it in SQL, so that an index finds it, and the lake's files outside of it are not opened: what
//! a sample costs does not grow with the table.

use arrow::datatypes::DataType;
use chrono::{Days, NaiveDate};
use datafusion::common::ScalarValue;
use datafusion::prelude::{Expr, ident, lit};
use uuid::Uuid;

use crate::connectors::sql::Dialect;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{LakeTable, Spread};

/// Keys of which the first column lies between two values, both among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    column: String,
    data_type: DataType,
    first: i128,
    last: i128,
}

impl Range {
    /// Draws a range of about so many rows of a snapshot; `None` where it has none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for keys whose values are not in the same order in every database.
    pub(super) async fn draw(table: &LakeTable, at: SnapshotId, rows: u64) -> Result<Option<Self>> {
        let unfit = || {
            Error::new(
                ErrorKind::Unsupported,
                "samples are ranges of a key that begins with a whole number or a date",
            )
            .with("table", table.id())
            .hint("compare the whole table")
        };
        let column = table.key().into_iter().next().ok_or_else(unfit)?;
        let schema = table.columns();
        let data_type = schema.field_with_name(&column).map_err(|_| unfit())?.data_type().clone();
        if !matches!(
            data_type,
            DataType::Int32 | DataType::Int64 | DataType::Date32 | DataType::Decimal128(_, 0)
        ) {
            return Err(unfit());
        }
        let files = table.spread(&column, at).await?;
        let drawn = within(&files, rows, Uuid::new_v4().as_u128());
        Ok(drawn.map(|(first, last)| Self { column, data_type, first, last }))
    }

    /// As a condition of a database.
    pub(super) fn sql(&self, dialect: &Dialect) -> String {
        let value = |value: i128| match self.data_type {
            DataType::Date32 => format!("'{}'", date(value)),
            _ => value.to_string(),
        };
        format!("{} BETWEEN {} AND {}", dialect.ident(&self.column), value(self.first), value(self.last))
    }

    /// The same beside a condition that is there already, which may end with a comment.
    pub(super) fn beside(&self, dialect: &Dialect, filter: Option<&str>) -> String {
        match filter {
            Some(filter) => format!("({filter}\n) AND {}", self.sql(dialect)),
            None => self.sql(dialect),
        }
    }

    /// As a condition of the lake.
    pub(super) fn expr(&self) -> Expr {
        let value = |value: i128| match &self.data_type {
            DataType::Date32 => ScalarValue::Date32(i32::try_from(value).ok()),
            DataType::Int32 => ScalarValue::Int32(i32::try_from(value).ok()),
            DataType::Decimal128(precision, scale) => {
                ScalarValue::Decimal128(Some(value), *precision, *scale)
            }
            _ => ScalarValue::Int64(i64::try_from(value).ok()),
        };
        ident(&self.column).between(lit(value(self.first)), lit(value(self.last)))
    }
}

fn date(days: i128) -> NaiveDate {
    let begin = NaiveDate::default();
    let moved = u64::try_from(days.unsigned_abs()).map(Days::new);
    let moved = moved.ok().and_then(|by| match days < 0 {
        true => begin.checked_sub_days(by),
        false => begin.checked_add_days(by),
    });
    moved.unwrap_or(begin)
}

/// A range of about so many rows, in a file that has the row of a number by chance.
fn within(files: &[Spread], rows: u64, chance: u128) -> Option<(i128, i128)> {
    let all: u128 = files.iter().map(|file| u128::from(file.rows)).sum();
    let [of_place, of_file] = [chance >> 64, chance & u128::from(u64::MAX)];
    let mut row = of_file.checked_rem(all)?;
    let file = files.iter().find(|file| {
        let here = row < u128::from(file.rows);
        row = row.saturating_sub(u128::from(file.rows));
        here
    })?;
    let (least, greatest) = (number(&file.least)?, number(&file.greatest)?);
    let values = greatest.checked_sub(least)?.checked_add(1).filter(|values| *values > 0)?;
    let wanted = i128::from(rows.min(file.rows).max(1));
    let width = (values / i128::from(file.rows.max(1))).max(1).saturating_mul(wanted).min(values);
    let places = u128::try_from(values - width).ok()? + 1;
    let first = least + i128::try_from(of_place % places).ok()?;
    Some((first, first + width - 1))
}

fn number(value: &ScalarValue) -> Option<i128> {
    match value {
        ScalarValue::Int32(value) | ScalarValue::Date32(value) => value.map(i128::from),
        ScalarValue::Int64(value) => value.map(i128::from),
        ScalarValue::Decimal128(value, _, 0) => *value,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::connectors::sql::{MSSQL, MYSQL, POSTGRES};

    fn file(rows: u64, least: i64, greatest: i64) -> Spread {
        Spread { rows, least: ScalarValue::Int64(Some(least)), greatest: ScalarValue::Int64(Some(greatest)) }
    }

    proptest! {
        #[test]
        fn a_range_lies_in_a_file_and_has_about_so_many_rows(
            files in proptest::collection::vec((1_u64..10_000, any::<i64>(), any::<i64>()), 1..5),
            rows in 1_u64..2_000,
            chance in any::<u128>(),
        ) {
            let files: Vec<_> = files.into_iter().map(|(rows, a, b)| file(rows, a.min(b), a.max(b))).collect();
            let (first, last) = within(&files, rows, chance).unwrap();
            prop_assert!(first <= last);
            let inside = files.iter().any(|file| {
                let (least, greatest) = (number(&file.least).unwrap(), number(&file.greatest).unwrap());
                least <= first && last <= greatest
            });
            prop_assert!(inside, "{first} to {last}");
        }
    }

    #[test]
    fn every_key_may_be_drawn() {
        let files = [file(10, 1, 10), file(0, 50, 60), file(5, 100, 104)];
        let mut seen = std::collections::BTreeSet::new();
        for low in 0..15_u128 {
            for high in 0..10_u128 {
                let (first, last) = within(&files, 1, low + (high << 64)).unwrap();
                assert_eq!(first, last);
                seen.insert(first);
            }
        }
        assert_eq!(seen, (1..=10).chain(100..=104).collect());
        assert_eq!(within(&files, 100, 3), Some((1, 10)));
        assert_eq!(within(&[], 1, 7), None);
        assert_eq!(within(&[file(0, 1, 2)], 1, 7), None);
    }

    #[test]
    fn conditions_are_in_the_words_of_each_database() {
        let range = |data_type, first, last| Range { column: "The Id".to_owned(), data_type, first, last };
        let numbers = range(DataType::Int64, -3, 9);
        assert_eq!(numbers.sql(&POSTGRES), "\"The Id\" BETWEEN -3 AND 9");
        assert_eq!(numbers.sql(&MSSQL), "[The Id] BETWEEN -3 AND 9");
        assert_eq!(
            numbers.beside(&MYSQL, Some("a = 1 -- or b")),
            "(a = 1 -- or b\n) AND `The Id` BETWEEN -3 AND 9"
        );
        let days = range(DataType::Date32, -1, 20_000);
        assert_eq!(days.sql(&POSTGRES), "\"The Id\" BETWEEN '1969-12-31' AND '2024-10-04'");
    }
}
