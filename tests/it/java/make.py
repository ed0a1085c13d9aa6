"""The data files of the table that Make.java makes: Parquet with field ids, as Spark would write them."""
import datetime, decimal, pathlib
import pyarrow as pa
import pyarrow.parquet as pq

folder = pathlib.Path("/frazil-java/main/orders/data")
folder.mkdir(parents=True, exist_ok=True)


def field(number, name, kind, required=False):
    return pa.field(name, kind, not required, metadata={"PARQUET:field_id": str(number)})


def write(name, fields, columns):
    schema = pa.schema(fields)
    arrays = [pa.array(column, one.type) for column, one in zip(columns, schema)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / name, store_schema=False, compression="zstd")


def at(day):
    return datetime.datetime(2024, 1, day, 12, tzinfo=datetime.timezone.utc)


price = lambda digits: pa.decimal128(digits, 2)
D = decimal.Decimal
old_place = pa.struct([field(8, "lat", pa.float32()), field(9, "town", pa.string())])
new_place = pa.struct([field(9, "city", pa.string()), field(8, "lat", pa.float64()), field(11, "zip", pa.string())])
tags = pa.list_(field(7, "element", pa.string()))
write("old.parquet",
    [field(1, "id", pa.int32(), True), field(2, "name", pa.string()), field(3, "price", price(9)),
     field(4, "at", pa.timestamp("us", "UTC")), field(5, "tags", tags), field(6, "place", old_place)],
    [[1, 2, 3, 4], ["ann", "bo", None, "di"], [D("1.50"), None, D("-3.25"), D("4.00")], [at(1), at(2), None, at(4)],
     [["x", None], [], None, ["y"]],
     [{"lat": 0.5, "town": "Oslo"}, None, {"lat": None, "town": "Rome"}, {"lat": 1.25, "town": None}]])
for name, ids in {"new-e.parquet": [5, 6], "new-f.parquet": [7, 8]}.items():
    write(name,
        [field(1, "id", pa.int64(), True), field(2, "title", pa.string()), field(3, "price", price(12)),
         field(4, "at", pa.timestamp("us", "UTC")), field(5, "tags", tags), field(6, "place", new_place), field(10, "note", pa.string())],
        [[(1 << 40) + i for i in ids], [f"{name[4]}{i}" for i in ids], [D("1234567890.00") + i for i in ids],
         [at(i) for i in ids], [["z"] * (i - 4) for i in ids],
         [{"city": f"c{i}", "lat": i / 10, "zip": str(i)} for i in ids], [f"note {i}" for i in ids]])
write("positions.parquet",
    [field(2147483546, "file_path", pa.string(), True), field(2147483545, "pos", pa.int64(), True)],
    [["file:/frazil-java/main/orders/data/old.parquet"], [1]])
write("equality.parquet", [field(1, "id", pa.int64(), True)], [[(1 << 40) + 7, 99]])
