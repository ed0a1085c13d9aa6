//! How many rows a second does one core decode from the wire into Arrow?
//!
//! `cargo bench --bench postgres_decode`: sixteen columns like those of TPC-H `lineitem` (integers,
//! decimals, dates, short texts) in messages of one row each, as a server sends them.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frazil::connectors::postgres::decode::{Codec, Decoder};
use frazil::source::OutOfRange;

const ROWS: u64 = 65_536;

fn codecs() -> Vec<Codec> {
    let decimal = Codec::Decimal { precision: 15, scale: 2 };
    let mut codecs = vec![Codec::Int64, Codec::Int64, Codec::Int64, Codec::Int32];
    codecs.extend([decimal.clone(), decimal.clone(), decimal.clone(), decimal]);
    codecs.extend([Codec::Text, Codec::Text, Codec::Date, Codec::Date, Codec::Date]);
    codecs.extend([Codec::Text, Codec::Text, Codec::Text]);
    codecs
}

/// A `numeric` as the server writes it: cents below 100,000,000.
fn numeric(cents: u64) -> Vec<u8> {
    let digits = [(cents / 1_000_000) as u16, (cents / 100 % 10_000) as u16, (cents % 100 * 100) as u16];
    let words = [3, 1, 0, 2].into_iter().chain(digits);
    words.flat_map(u16::to_be_bytes).collect()
}

fn row(n: u64) -> Vec<u8> {
    let mut fields: Vec<Vec<u8>> = (0..3).map(|i| (n + i).to_be_bytes().to_vec()).collect();
    fields.push((n as i32 % 7).to_be_bytes().to_vec());
    fields.extend((1..5).map(|i| numeric(n * 7919 * i % 10_000_000_000)));
    fields.extend([b"N".to_vec(), b"O".to_vec()]);
    fields.extend((0..3).map(|i| (8000 + (n as i32 + i) % 2500).to_be_bytes().to_vec()));
    fields.extend([b"DELIVER IN PERSON".to_vec(), b"TRUCK".to_vec()]);
    fields.push(format!("egular courts above the {}", n % 1000).into_bytes());
    let mut payload = 16i16.to_be_bytes().to_vec();
    for field in fields {
        payload.extend((field.len() as i32).to_be_bytes());
        payload.extend(field);
    }
    payload
}

fn message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'd'];
    bytes.extend((payload.len() as u32 + 4).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn decode(c: &mut Criterion) {
    let mut header = b"PGCOPY\n\xff\r\n\0".to_vec();
    header.extend([0; 8]);
    let header = message(&header);
    let rows: Vec<u8> = (0..ROWS).flat_map(|n| message(&row(n))).collect();
    let codecs = codecs();
    let fields =
        codecs.iter().enumerate().map(|(i, codec)| Field::new(i.to_string(), codec.data_type(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut decoder = Decoder::new(schema, &codecs, OutOfRange::Fail, ROWS as usize, 1 << 30);
    decoder.feed(&header).expect("a header");

    let mut group = c.benchmark_group("postgres/decode");
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("lineitem", |b| {
        b.iter(|| decoder.feed(&rows).expect("rows").1.expect("a full batch").num_rows())
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
