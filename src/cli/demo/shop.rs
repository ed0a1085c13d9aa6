//! A shop to show: tables, rows, and a day of business. The same rows every time.

use std::path::Path;

use rusqlite::Connection as Database;

use crate::error::{Error, ErrorKind, Result};

/// A table of the shop.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// What its changes look like to us.
    pub(super) sees: &'static str,
    /// Its line in the configuration.
    pub(super) settings: &'static str,
}

/// All tables, one for each way to find changes.
pub(super) const TABLES: [Table; 4] = [
    Table { name: "customers", sees: "changes by updated_at: inserts, updates", settings: "{}" },
    Table {
        name: "products",
        sees: "read whole each time: inserts, updates, deletes",
        settings: "{ change: full }",
    },
    Table { name: "orders", sees: "changes by updated_at: inserts, updates", settings: "{}" },
    Table { name: "order_items", sees: "changes by its growing id: inserts", settings: "{}" },
];

/// `h` is a number that looks like chance and is the same every time.
const SHOP: &str = "
PRAGMA journal_mode = wal;
CREATE TABLE customers (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  mail TEXT,
  balance DECIMAL(12,2) NOT NULL,
  vip BOOLEAN NOT NULL,
  born DATE,
  updated_at TIMESTAMP NOT NULL
);
CREATE TABLE products (
  code TEXT PRIMARY KEY,
  title TEXT NOT NULL,
  price DECIMAL(10,2) NOT NULL,
  weight DOUBLE,
  picture BLOB
) WITHOUT ROWID;
CREATE TABLE orders (
  id INTEGER PRIMARY KEY,
  customer INTEGER NOT NULL,
  status TEXT NOT NULL,
  total DECIMAL(12,2) NOT NULL,
  note TEXT,
  updated_at TIMESTAMP NOT NULL
);
CREATE TABLE order_items (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  order_id INTEGER NOT NULL,
  product TEXT NOT NULL,
  quantity INTEGER NOT NULL,
  price DECIMAL(10,2) NOT NULL
);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000),
  r AS (SELECT i, (i * 2654435761) % 1000003 AS h FROM n)
INSERT INTO customers SELECT i, 'Customer ' || i, CASE WHEN h % 7 THEN 'c' || i || '@example.com' END,
  (h % 500000 - 50000) / 100.0, h % 20 = 0, CASE WHEN h % 11 THEN date('1950-01-01', (h % 20000) || ' days') END,
  datetime('2026-01-01', '-' || (h % 500000) || ' minutes') FROM r;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000),
  r AS (SELECT i, (i * 2654435761) % 1000003 AS h FROM n)
INSERT INTO products SELECT printf('P-%05d', i), 'Product ' || i, (h % 99900 + 100) / 100.0,
  CASE WHEN h % 5 THEN (h % 10000) / 7.0 END, CASE WHEN h % 3 = 0 THEN unhex(printf('%08x', h)) END FROM r;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000),
  r AS (SELECT i, (i * 2654435761) % 1000003 AS h FROM n)
INSERT INTO orders SELECT i, h % 10000 + 1, CASE h % 10 WHEN 0 THEN 'open' WHEN 1 THEN 'paid' WHEN 2 THEN 'returned' ELSE 'shipped' END,
  (h % 900000 + 100) / 100.0, CASE WHEN h % 9 = 0 THEN 'leave it at the door, № ' || h END,
  datetime('2026-01-01', '-' || (h % 300000) || ' minutes') || printf('.%03d', h % 999 + 1) FROM r;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000),
  r AS (SELECT i, (i * 2654435761) % 1000003 AS h FROM n)
INSERT INTO order_items SELECT i, h % 40000 + 1, printf('P-%05d', h % 1000 + 1), h % 9 + 1, (h % 99900 + 100) / 100.0 FROM r;
COMMIT;
CREATE INDEX customers_updated_at ON customers (updated_at);
CREATE INDEX orders_updated_at ON orders (updated_at);
";

/// What happens in it between the two passes, told and done.
pub(super) const BUSINESS: [(&str, &str); 6] = [
    (
        "  500 open orders are paid",
        "UPDATE orders SET status = 'paid', updated_at = CURRENT_TIMESTAMP
         WHERE id IN (SELECT id FROM orders WHERE status = 'open' ORDER BY id LIMIT 500)",
    ),
    (
        "  300 new orders come in",
        "WITH RECURSIVE n(i) AS (SELECT 40001 UNION ALL SELECT i + 1 FROM n WHERE i < 40300)
         INSERT INTO orders SELECT i, i % 10000 + 1, 'open', i / 100.0, NULL, CURRENT_TIMESTAMP FROM n",
    ),
    (
        "  700 items are in them",
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 699)
         INSERT INTO order_items (order_id, product, quantity, price)
         SELECT 40001 + i % 300, printf('P-%05d', i % 900 + 1), i % 5 + 1, 9.99 FROM n",
    ),
    (
        "  200 customers get a voucher",
        "UPDATE customers SET balance = round(balance + 10, 2), updated_at = CURRENT_TIMESTAMP WHERE id % 50 = 7",
    ),
    (
        "   25 prices rise by a half",
        "UPDATE products SET price = round(price * 1.5, 2) WHERE code <= 'P-00025'",
    ),
    ("   10 products are gone: rows deleted", "DELETE FROM products WHERE code > 'P-00990'"),
];

/// Makes the shop.
pub(super) fn open(file: &Path) -> Result<()> {
    run(file, SHOP)
}

/// A day of business.
pub(super) fn do_business(file: &Path) -> Result<()> {
    let statements: Vec<&str> = BUSINESS.iter().map(|(_, statement)| *statement).collect();
    run(file, &format!("BEGIN; {}; COMMIT", statements.join(";\n")))
}

fn run(file: &Path, sql: &str) -> Result<()> {
    Database::open(file).and_then(|database| database.execute_batch(sql)).map_err(|error| failed(file, error))
}

pub(super) fn failed(file: &Path, error: rusqlite::Error) -> Error {
    Error::new(ErrorKind::Config, format!("the demo cannot use its own database: {error}"))
        .with("file", file.display())
        .hint("give the demo a directory of its own with `--dir`")
}
