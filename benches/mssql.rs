//! How many rows a second does one session read from the wire into Arrow, and write from Arrow by bulk load?
//!
//! `cargo bench --bench mssql`: eight columns of about 115 bytes a row (integers, a decimal, a float, a
//! date, a `datetime2`, two texts), from and to a thread that sends the same bytes again and again, throws
//! away what it gets, and is no SQL Server. Beside each a loop of the client alone, which takes its rows and
//! does nothing with them, or sends values that are made already: what we add is the difference. Nothing is
//! encrypted, which would cost both the same.

#![allow(missing_docs, clippy::unwrap_used, clippy::large_futures, clippy::print_stdout)]

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int8Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frazil::connectors::mssql::decode::{Codec, Decoder, Policy};
use frazil::connectors::mssql::encode::{Batch, Output};
use futures::TryStreamExt;
use tiberius::numeric::Numeric;
use tiberius::time::{Date, DateTime2, Time};
use tiberius::{
    AuthMethod, Client, ColumnData, Config, EncryptionLevel, QueryItem, SqlBulkCopyOption, TokenRow,
};
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

const ROWS: u64 = 200_000;
const COLLATION: [u8; 5] = [0x09, 0x04, 0xD0, 0x00, 0x34];

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn done(rows: u64) -> Vec<u8> {
    let mut bytes = vec![0xFD, 0x10, 0, 0, 0];
    bytes.extend(rows.to_le_bytes());
    bytes
}

/// `id bigint, d decimal(18,4), f float, b bit, ts datetime2(6), dt date, s nvarchar(50), v varchar(20)`
fn columns() -> Vec<(&'static str, Vec<u8>, Codec)> {
    vec![
        ("id", vec![0x26, 8], Codec::Int64),
        ("d", vec![0x6A, 9, 18, 4], Codec::Decimal { precision: 18, scale: 4 }),
        ("f", vec![0x6D, 8], Codec::Float64),
        ("b", vec![0x68, 1], Codec::Bool),
        ("ts", vec![0x2A, 6], Codec::Timestamp),
        ("dt", vec![0x28], Codec::Date),
        ("s", [vec![0xE7, 100, 0], COLLATION.to_vec()].concat(), Codec::Text),
        ("v", [vec![0xA7, 20, 0], COLLATION.to_vec()].concat(), Codec::Text),
    ]
}

/// The staging table of a load: texts are `nvarchar` there, and the operation comes last.
fn staging() -> Vec<u8> {
    let mut columns: Vec<_> = columns().into_iter().map(|(name, of, _)| (name, of)).collect();
    columns[7].1 = [vec![0xE7, 40, 0], COLLATION.to_vec()].concat();
    columns.push(("op", vec![0x26, 1]));
    [metadata(columns.into_iter()), done(0)].concat()
}

fn metadata(columns: impl ExactSizeIterator<Item = (&'static str, Vec<u8>)>) -> Vec<u8> {
    let mut bytes = vec![0x81];
    bytes.extend((columns.len() as u16).to_le_bytes());
    for (name, of) in columns {
        // They may be NULL, and may be written.
        bytes.extend([0, 0, 0, 0, 9, 0]);
        bytes.extend(of);
        bytes.push(name.len() as u8);
        bytes.extend(utf16(name));
    }
    bytes
}

fn result() -> Vec<u8> {
    let mut bytes = metadata(columns().into_iter().map(|(name, of, _)| (name, of)));
    for n in 0..ROWS {
        bytes.extend([0xD1, 8]);
        bytes.extend(n.to_le_bytes());
        bytes.extend([9, 1]);
        bytes.extend((n * 37 + 12_345).to_le_bytes());
        bytes.push(8);
        bytes.extend((n as f64 * 0.5).to_le_bytes());
        bytes.extend([1, (n & 1) as u8, 8]);
        bytes.extend(&(43_200_000_000 + n % 1_000_000).to_le_bytes()[..5]);
        bytes.extend(&738_000_u32.to_le_bytes()[..3]);
        bytes.push(3);
        bytes.extend(&738_000_u32.to_le_bytes()[..3]);
        let name = utf16(&name(n));
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend(name);
        let sku = sku(n);
        bytes.extend((sku.len() as u16).to_le_bytes());
        bytes.extend(sku.into_bytes());
    }
    bytes.extend(done(ROWS));
    bytes
}

/// The bytes in packets of this size.
fn packets(bytes: &[u8], size: usize) -> Vec<u8> {
    let chunks = bytes.chunks(size - 8);
    let last = chunks.len().saturating_sub(1);
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 100);
    for (index, chunk) in chunks.enumerate() {
        out.extend([4, u8::from(index == last)]);
        out.extend((chunk.len() as u16 + 8).to_be_bytes());
        out.extend([0, 0, index as u8, 0]);
        out.extend(chunk);
    }
    out
}

fn serve(socket: TcpStream, rows: &[u8]) -> io::Result<()> {
    let mut from = BufReader::new(socket.try_clone()?);
    let mut to = socket;
    loop {
        let mut header = [0_u8; 8];
        let mut message = Vec::new();
        loop {
            from.read_exact(&mut header)?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]])) - 8;
            let at = message.len();
            message.resize(at + length, 0);
            from.read_exact(&mut message[at..])?;
            if header[1] & 1 == 1 {
                break;
            }
        }
        let answer = match header[0] {
            0x12 => packets(&[0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xFF, 16, 0, 0x10, 0, 0, 0, 2], 4096),
            0x10 => {
                let mut bytes = vec![0xAD, 0, 0, 1, 0x74, 0, 0, 4, 4];
                bytes.extend(utf16("none"));
                bytes.extend([16, 0, 0x10, 0]);
                let length = bytes.len() as u16 - 3;
                bytes[1..3].copy_from_slice(&length.to_le_bytes());
                bytes.extend(done(0));
                packets(&bytes, 4096)
            }
            0x07 => packets(&done(ROWS), 4096),
            _ if message.windows(8).any(|part| part == b"B\0U\0L\0K\0") => packets(&done(0), 4096),
            _ if message.windows(6).any(|part| part == b"T\0O\0P\0") => packets(&staging(), 4096),
            _ => {
                to.write_all(rows)?;
                continue;
            }
        };
        to.write_all(&answer)?;
    }
}

async fn connect(port: u16) -> Client<Compat<tokio::net::TcpStream>> {
    let mut config = Config::new();
    config.encryption(EncryptionLevel::NotSupported);
    config.authentication(AuthMethod::sql_server("u", "p"));
    let socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    Client::connect(config, socket.compat_write()).await.unwrap()
}

/// The port of a server that sends these rows, and takes any.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let rows = Arc::new(packets(&result(), 4096));
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let rows = rows.clone();
            std::thread::spawn(move || serve(socket, &rows).ok());
        }
    });
    port
}

fn read(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = runtime.block_on(connect(server()));
    let columns = columns();
    let codecs: Vec<Codec> = columns.iter().map(|(_, _, codec)| *codec).collect();
    let fields = columns.iter().map(|(name, _, codec)| Field::new(*name, codec.data_type(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));

    let mut group = c.benchmark_group("mssql/read");
    group.throughput(Throughput::Elements(ROWS)).sample_size(10);
    group.bench_function("the client's rows alone", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let mut found = client.simple_query("rows").await.unwrap();
                let mut cells = 0;
                while let Some(item) = found.try_next().await.unwrap() {
                    if let QueryItem::Row(row) = item {
                        cells += row.into_iter().count();
                    }
                }
                assert_eq!(cells as u64, ROWS * 8);
            })
        })
    });
    group.bench_function("into Arrow", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let mut decoder = Decoder::new(schema.clone(), &codecs, Policy::default(), 65_536, 16 << 20);
                let mut found = client.simple_query("rows").await.unwrap();
                let mut rows = 0;
                while let Some(item) = found.try_next().await.unwrap() {
                    if let QueryItem::Row(row) = item
                        && let Some(batch) = decoder.push(row).unwrap()
                    {
                        rows += batch.num_rows();
                    }
                }
                rows += decoder.flush().unwrap().map_or(0, |batch| batch.num_rows());
                assert_eq!(rows as u64, ROWS);
            })
        })
    });
    group.finish();
}

fn name(n: u64) -> String {
    format!("customer name {n:08}")
}

fn sku(n: u64) -> String {
    format!("sku-{:06}", n % 1_000_000)
}

/// The same rows as a batch of changes.
fn changes() -> RecordBatch {
    let n = || 0..ROWS;
    let array = |array: ArrayRef| array;
    let decimals = Decimal128Array::from_iter_values(n().map(|n| i128::from(n * 37 + 12_345)));
    let columns = [
        ("id", array(Arc::new(Int64Array::from_iter_values(n().map(|n| n as i64))))),
        ("d", array(Arc::new(decimals.with_precision_and_scale(18, 4).unwrap()))),
        ("f", array(Arc::new(Float64Array::from_iter_values(n().map(|n| n as f64 * 0.5))))),
        ("b", array(Arc::new(n().map(|n| Some(n & 1 == 1)).collect::<BooleanArray>()))),
        (
            "ts",
            array(Arc::new(TimestampMicrosecondArray::from_iter_values(n().map(|n| n as i64 * 1_000_003)))),
        ),
        ("dt", array(Arc::new(Date32Array::from_iter_values(n().map(|n| (n % 20_000) as i32))))),
        ("s", array(Arc::new(StringArray::from_iter_values(n().map(name))))),
        ("v", array(Arc::new(StringArray::from_iter_values(n().map(sku))))),
        ("_op", array(Arc::new(Int8Array::from_value(0, ROWS as usize)))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

const TYPES: [&str; 8] =
    ["bigint", "decimal(18,4)", "float", "bit", "datetime2(6)", "date", "nvarchar(50)", "nvarchar(20)"];

fn write(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = runtime.block_on(connect(server()));
    let columns = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "op"];
    let options = || SqlBulkCopyOption::TableLock.into();
    let changes = changes();
    let fields = changes.schema();
    let outputs: Vec<Output> = TYPES
        .iter()
        .enumerate()
        .map(|(at, of)| Output::of(at, fields.field(at).name(), fields.field(at).data_type(), of).unwrap())
        .collect();
    let texts: Vec<(String, String)> = (0..ROWS).map(|n| (name(n), sku(n))).collect();

    let mut group = c.benchmark_group("mssql/write");
    group.throughput(Throughput::Elements(ROWS)).sample_size(10);
    group.bench_function("values that are made already", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let mut load = client.bulk_insert_with_options("#t", &columns, options(), &[]).await.unwrap();
                for (n, (name, sku)) in texts.iter().enumerate() {
                    let mut row = TokenRow::with_capacity(columns.len());
                    row.push(ColumnData::I64(Some(n as i64)));
                    row.push(ColumnData::Numeric(Some(Numeric::new_with_scale(n as i128 * 37 + 12_345, 4))));
                    row.push(ColumnData::F64(Some(n as f64 * 0.5)));
                    row.push(ColumnData::Bit(Some(n & 1 == 1)));
                    let day = Date::new(738_000);
                    row.push(ColumnData::DateTime2(Some(DateTime2::new(day, Time::new(n as u64, 6)))));
                    row.push(ColumnData::Date(Some(day)));
                    row.push(ColumnData::String(Some(name.as_str().into())));
                    row.push(ColumnData::String(Some(sku.as_str().into())));
                    row.push(ColumnData::U8(Some(0)));
                    load.send(row).await.unwrap();
                }
                assert_eq!(load.finalize().await.unwrap().total(), ROWS);
            })
        })
    });
    group.bench_function("from Arrow", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let mut load = client.bulk_insert_with_options("#t", &columns, options(), &[]).await.unwrap();
                let batch = Batch::new(&changes, &outputs).unwrap();
                for row in 0..batch.rows() {
                    let (cells, _) = batch.row(row, &outputs).unwrap();
                    load.send(cells).await.unwrap();
                }
                assert_eq!(load.finalize().await.unwrap().total(), ROWS);
            })
        })
    });
    group.finish();
}

criterion_group!(benches, read, write);
criterion_main!(benches);
