//! What is written for a value, and what is refused.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Writes an array as a column of this type, a line a row, in both formats.
fn check(target: &str, array: ArrayRef, expected: Expect) {
    let carried = carry(array.data_type(), target).unwrap();
    let outputs = [Output { index: 0, name: "c".into(), wire: carried.wire, key: false }];
    let ops = Int8Array::from(vec![0; array.len()]);
    let schema = Schema::new(vec![
        Field::new("c", array.data_type().clone(), true),
        Field::new("_op", DataType::Int8, false),
    ]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![array, Arc::new(ops)]).unwrap();
    let batch = Batch::new(&batch, &outputs).unwrap();
    let mut text = format!("{}\n", carried.staged);
    for row in 0..batch.rows() {
        let mut written = [Format::Line, Format::Values].map(|format| {
            let (mut out, mut scratch) = (Vec::new(), Vec::new());
            match batch.write(row, format, None, &mut out, &mut scratch) {
                Ok(()) => out.escape_ascii().to_string(),
                Err(error) => error.message().to_owned(),
            }
        });
        if written[0] == written[1] {
            written[1].clear();
        }
        text += &format!("{} {}\n", written[0], written[1]);
    }
    expected.assert_eq(&text);
}

#[test]
fn numbers() {
    check(
        "tinyint unsigned",
        Arc::new(Int32Array::from(vec![0, 255, 256, -1])),
        expect![[r#"
            tinyint unsigned
            0\t0\n (\'0\',0)
            255\t0\n (\'255\',0)
            a value lies outside of the range of the target's column 
            a value lies outside of the range of the target's column 
        "#]],
    );
    let decimals =
        |values: Vec<i128>| Arc::new(Decimal128Array::from(values).with_precision_and_scale(38, 2).unwrap());
    check(
        "decimal(4,1)",
        decimals(vec![-10, 12350, 5, 99990, 100_000, 0]),
        expect![[r#"
            decimal(4,1)
            -0.1\t0\n (\'-0.1\',0)
            123.5\t0\n (\'123.5\',0)
            a value is finer than the target's column 
            999.9\t0\n (\'999.9\',0)
            a value lies outside of the range of the target's column 
            0.0\t0\n (\'0.0\',0)
        "#]],
    );
    check(
        "decimal(65,30)",
        decimals(vec![i128::MAX / 10 * 5 / 5, -1]),
        expect![[r#"
            decimal(65,30)
            a value lies outside of the range of the target's column 
            -0.010000000000000000000000000000\t0\n (\'-0.010000000000000000000000000000\',0)
        "#]],
    );
    check(
        "bigint unsigned",
        Arc::new(UInt64Array::from(vec![u64::MAX])),
        expect![[r#"
            bigint unsigned
            18446744073709551615\t0\n (\'18446744073709551615\',0)
        "#]],
    );
    check(
        "float",
        Arc::new(Float32Array::from(vec![16_777_217.0, -0.0, f32::MIN_POSITIVE, f32::NAN])),
        expect![[r#"
            float
            1.6777216e7\t0\n (\'1.6777216e7\',0)
            -0e0\t0\n (\'-0e0\',0)
            1.1754943508222875e-38\t0\n (\'1.1754943508222875e-38\',0)
            the target's column has no NaN and no infinity 
        "#]],
    );
    check(
        "bit(9)",
        Arc::new(Int64Array::from(vec![511, 512])),
        expect![[r#"
            bigint unsigned
            511\t0\n (\'511\',0)
            a value lies outside of the range of the target's column 
        "#]],
    );
}

#[test]
fn texts_and_bytes() {
    check(
        "varchar(5)",
        Arc::new(StringArray::from(vec![
            Some("a\tb\\"),
            Some("it's\0"),
            Some("äöüß€"),
            Some("sixsix"),
            Some("a "),
            None,
        ])),
        expect![[r#"
        longtext
        a\\tb\\\\\t0\n (\'a\tb\\\\\',0)
        it\'s\\0\t0\n (\'it\\\'s\x00\',0)
        \xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f\xe2\x82\xac\t0\n (\'\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f\xe2\x82\xac\',0)
        a value is longer than the target's column 
        a \t0\n (\'a \',0)
        \\N\t0\n (NULL,0)
    "#]],
    );
    check(
        "char(5)",
        Arc::new(StringArray::from(vec!["a "])),
        expect![[r#"
        longtext
        a text ends with a blank, which the target's `char` column would lose 
    "#]],
    );
    check(
        "binary(2)",
        Arc::new(BinaryArray::from(vec![&b"\\\n"[..], b"", b"abc"])),
        expect![[r#"
        varbinary(2)
        \\\\\\n\t0\n (X\'5C0A\',0)
        a value has another length than the target's `binary` column, which would fill it up 
        a value is longer than the target's column 
    "#]],
    );
}

#[test]
fn times() {
    check(
        "datetime(3)",
        Arc::new(TimestampMicrosecondArray::from(vec![
            -1_000,
            1,
            253_402_300_799_999_000,
            253_402_300_800_000_000,
        ])),
        expect![[r#"
            datetime(3)
            1969-12-31 23:59:59.999000\t0\n (\'1969-12-31 23:59:59.999000\',0)
            a value is finer than the target's column 
            9999-12-31 23:59:59.999000\t0\n (\'9999-12-31 23:59:59.999000\',0)
            a value lies outside of the range of the target's column 
        "#]],
    );
    check(
        "date",
        Arc::new(Date32Array::from(vec![-719_162, -719_163, 0])),
        expect![[r#"
            date
            0001-01-01\t0\n (\'0001-01-01\',0)
            a value lies outside of the range of the target's column 
            1970-01-01\t0\n (\'1970-01-01\',0)
        "#]],
    );
    assert_eq!(carry(&DataType::Timestamp(TimeUnit::Microsecond, None), "timestamp(6)"), None);
}

proptest! {
    /// Undone as the server does it, a line is what it was made of.
    #[test]
    fn lines_can_be_read_again(fields in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..4)) {
        let mut line = Vec::new();
        for field in &fields {
            escape_line(field, &mut line);
            line.push(b'\t');
        }
        prop_assert!(!line.contains(&b'\n') && !line.contains(&0));
        let mut read = vec![Vec::new()];
        let mut bytes = line.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\t' => read.push(Vec::new()),
                b'\\' => {
                    let byte = match bytes.next() {
                        Some(b't') => b'\t',
                        Some(b'n') => b'\n',
                        Some(b'0') => 0,
                        Some(other) => *other,
                        None => unreachable!(),
                    };
                    read.last_mut().unwrap().push(byte);
                }
                other => read.last_mut().unwrap().push(*other),
            }
        }
        read.pop();
        prop_assert_eq!(read, fields);
    }
}
