//! Which of two rows with one key stays, in both forms and however many passes it takes.

use std::collections::BTreeMap;

use arrow::array::{Float64Array, Int32Array, Int64Array, StringArray};
use proptest::prelude::*;

use super::*;

fn columns(types: &[DataType]) -> Arc<[KeyColumn]> {
    let column = |(i, data_type): (usize, &DataType)| KeyColumn {
        name: format!("k{i}"),
        field_id: i as i32 + 1,
        data_type: data_type.clone(),
        names: Vec::new(),
    };
    types.iter().enumerate().map(column).collect()
}

fn all() -> Pass {
    Pass { number: 0, of: 1, hasher: RandomState::new() }
}

fn set(keys: &[ArrayRef], ranges: Option<&[(i64, i64)]>, pass: Pass) -> (KeySet, Vec<u64>) {
    let types: Vec<_> = keys.iter().map(|key| key.data_type().clone()).collect();
    let mut builder = KeySetBuilder::new(columns(&types), ranges, pass, 0).unwrap();
    builder.insert(keys, 0).unwrap();
    builder.finish().unwrap()
}

fn found(set: &KeySet, keys: &[ArrayRef]) -> Vec<usize> {
    let mut rows = Vec::new();
    set.find(keys, |row, _| rows.push(row)).unwrap();
    rows
}

#[test]
fn a_later_row_replaces_an_earlier_one() {
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![5, 6, 5, 7, 5]));
    for ranges in [None, Some([(5, 7)].as_slice())] {
        let (set, replaced) = set(std::slice::from_ref(&keys), ranges, all());
        assert_eq!(replaced, [0, 2]);
        let old: ArrayRef = Arc::new(Int64Array::from(vec![Some(4), Some(7), None, Some(5), Some(i64::MIN)]));
        assert_eq!(found(&set, &[old]), [1, 3]);
        assert_eq!(set.few().map(|few| few[0].len()), Some(3));
    }
}

#[test]
fn null_in_a_key_is_refused_by_name() {
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![Some(5), None]));
    let mut builder = KeySetBuilder::new(columns(&[DataType::Int64]), None, all(), 0).unwrap();
    let error = builder.insert(&[keys], 0).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Data, "a key column holds NULL (column: k0)")
    );
}

#[test]
fn zeros_and_nans_are_one_key_each() {
    let keys: ArrayRef = Arc::new(Float64Array::from(vec![0.0, f64::NAN]));
    let (set, _) = set(&[keys], None, all());
    let old: ArrayRef = Arc::new(Float64Array::from(vec![-0.0, -f64::NAN, 1.0]));
    assert_eq!(found(&set, &[old]), [0, 1]);
}

#[test]
fn the_whole_range_of_a_column_is_packed() {
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![i64::MIN, -1, i64::MAX]));
    let one: ArrayRef = Arc::new(Int32Array::from(vec![3, 3, 3]));
    let (set, replaced) = set(&[keys.clone(), one.clone()], Some(&[(i64::MIN, i64::MAX), (3, 3)]), all());
    assert!(matches!(set.form, Form::Packed { .. }) && replaced.is_empty());
    assert_eq!(found(&set, &[keys.clone(), one]), [0, 1, 2]);
    let other: ArrayRef = Arc::new(Int32Array::from(vec![3, 4, 3]));
    assert_eq!(found(&set, &[keys, other]), [0, 2]);
}

proptest! {
    /// Both forms, in any number of passes, agree with a map.
    #[test]
    fn sets_agree_with_a_map(
        new in prop::collection::vec((-20i64..20, -3i32..3), 1..60),
        old in prop::collection::vec((-25i64..25, -4i32..4), 0..60),
        of in 1u64..4,
        text in any::<bool>(),
    ) {
        let arrays = |rows: &[(i64, i32)]| -> Vec<ArrayRef> {
            let second = Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.1)));
            if text {
                let first = StringArray::from_iter_values(rows.iter().map(|row| row.0.to_string()));
                vec![Arc::new(first), second]
            } else {
                vec![Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))), second]
            }
        };
        let ranges = [(-20, 19), (-3, 2)];
        let mut newest = BTreeMap::new();
        let mut expected_replaced = Vec::new();
        for (ordinal, row) in new.iter().enumerate() {
            expected_replaced.extend(newest.insert(*row, ordinal as u64));
        }
        let expected: Vec<_> = (0..old.len()).filter(|i| newest.contains_key(&old[*i])).collect();
        let (mut all_found, mut all_replaced) = (Vec::new(), Vec::new());
        let hasher = RandomState::new();
        for number in 0..of {
            let pass = Pass { number, of, hasher: hasher.clone() };
            let (set, replaced) = set(&arrays(&new), (!text).then_some(&ranges), pass);
            all_found.extend(found(&set, &arrays(&old)));
            all_replaced.extend(replaced);
        }
        all_found.sort_unstable();
        all_replaced.sort_unstable();
        expected_replaced.sort_unstable();
        prop_assert_eq!(all_found, expected);
        prop_assert_eq!(all_replaced, expected_replaced);
    }
}
