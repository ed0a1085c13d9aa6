"""Proves with foreign readers that a lake table holds exactly the rows of a query.

    judge.py LOCATION DATABASE_URL QUERY [READER…]

LOCATION is the table's folder (`file:///…` or `s3://…`) or one of its metadata files; `#` and a snapshot's id
behind it mean the table as it was then (not by chdb). Each reader reads
the table by itself, and each result must equal the query's by EXCEPT ALL in both directions. Readers are
`duckdb`, `pyiceberg` and `chdb`; the first two, where none is named. DATABASE_URL may be a Parquet file:
the query then reads `rows` in DuckDB. Lake columns that begin with `_` are ours and are left out, unless
the query names them. S3 is reached by S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY in the environment.

What chdb is known to read wrongly is not asked of it: columns of a `time`, whose fraction it drops, and
of lists, structs and maps, of which NULL is empty to it; nor format version 3.

Prints the number of rows and exits 0, or prints what differs and exits 1.
"""

import os
import pathlib
import re
import sys

import duckdb
import pyarrow
import pyarrow.fs
from pyiceberg.table import StaticTable

# The first few differences show what is wrong; a whole table of them hides it.
SHOWN = 5


def main():
    location, database, query, *names = sys.argv[1:]
    location, _, snapshot = location.partition("#")
    metadata = newest_metadata(location)
    db = connect(metadata)
    truth_types = read_truth(db, database, query)
    rows = db.execute("select count(*) from truth").fetchone()[0]
    problems = []
    for reader in names or ["duckdb", "pyiceberg"]:
        READERS[reader](db, metadata, int(snapshot) if snapshot else None)
        problems += compare(db, reader, truth_types)
    for problem in problems:
        print(problem)
    if problems:
        print(f"judged: {metadata}")
        sys.exit(1)
    print(rows)


def newest_metadata(location):
    if location.endswith(".metadata.json"):
        return location
    files, folder = filesystem(location.rstrip("/") + "/metadata")
    found = {}
    for info in files.get_file_info(pyarrow.fs.FileSelector(folder)):
        version = re.fullmatch(r"v?(\d+)(-.*)?\.metadata\.json", info.base_name)
        if version:
            found[int(version[1])] = info.base_name
    if not found:
        sys.exit(f"no metadata file in {location}")
    return f"{location.rstrip('/')}/metadata/{found[max(found)]}"


def filesystem(url):
    if url.startswith("s3://"):
        endpoint = os.environ["S3_ENDPOINT"]
        files = pyarrow.fs.S3FileSystem(
            access_key=os.environ["S3_ACCESS_KEY"],
            secret_key=os.environ["S3_SECRET_KEY"],
            endpoint_override=endpoint,
            scheme=endpoint.split(":")[0],
            region="us-east-1",
        )
        return files, url.removeprefix("s3://")
    return pyarrow.fs.LocalFileSystem(), url.removeprefix("file://")


def connect(metadata):
    db = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    # What takes long would draw a bar among what is printed.
    db.execute("set enable_progress_bar = false")
    for name in ["avro", "iceberg", "httpfs", "postgres_scanner", "sqlite_scanner"]:
        load_extension(db, name)
    db.execute("set timezone = 'UTC'")
    if metadata.startswith("s3://"):
        endpoint = os.environ["S3_ENDPOINT"]
        scheme, host = endpoint.split("://")
        db.execute(
            f"""create secret (type s3, key_id '{os.environ["S3_ACCESS_KEY"]}',
                secret '{os.environ["S3_SECRET_KEY"]}', endpoint '{host}', region 'us-east-1',
                url_style 'path', use_ssl {str(scheme == "https").lower()})"""
        )
    return db


def load_extension(db, name):
    # Each is a wheel that carries the file for one DuckDB version.
    package = __import__(f"duckdb_extension_{name}")
    folder = pathlib.Path(package.__file__).parent
    [file] = folder.glob(f"extensions/v{duckdb.__version__}/*.duckdb_extension")
    db.execute(f"load '{file}'")


def read_truth(db, url, query):
    quoted = query.replace("'", "''")
    if url.endswith(".parquet"):
        db.execute(f"create table truth as with rows as (from '{url}') {query}")
        return columns(db, "truth")
    if url.startswith("sqlite:"):
        path = re.sub(r"^sqlite:(//)?", "", url).split("?")[0]
        # Declared types only say how values may look in SQLite; the query casts where it matters.
        db.execute(f"attach '{path}' as source (type sqlite, read_only)")
        db.execute("use source")
        db.execute(f"create table memory.main.truth as {query}")
        db.execute("use memory")
    else:
        db.execute(f"attach '{url}' as source (type postgres, read_only)")
        db.execute(f"create table truth as from postgres_query('source', '{quoted}')")
    db.execute("detach source")
    return columns(db, "truth")


def read_by_duckdb(db, metadata, snapshot=None):
    path = metadata.removeprefix("file://")
    at = f", snapshot_from_id = {snapshot}" if snapshot else ""
    db.execute(f"create or replace table lake as from iceberg_scan('{path}'{at})")


def read_by_pyiceberg(db, metadata, snapshot=None):
    properties = {}
    if metadata.startswith("s3://"):
        properties = {
            "s3.endpoint": os.environ["S3_ENDPOINT"],
            "s3.access-key-id": os.environ["S3_ACCESS_KEY"],
            "s3.secret-access-key": os.environ["S3_SECRET_KEY"],
            "s3.region": "us-east-1",
        }
    elif not metadata.startswith("file://"):
        metadata = f"file://{metadata}"
    rows = StaticTable.from_metadata(metadata, properties).scan(snapshot_id=snapshot).to_arrow()
    # DuckDB has no nanoseconds with a zone: as moments in UTC.
    for place, field in enumerate(rows.schema):
        if pyarrow.types.is_timestamp(field.type) and field.type.unit == "ns" and field.type.tz:
            plain = rows.column(place).cast(pyarrow.timestamp("ns"))
            rows = rows.set_column(place, field.name, plain)
    db.register("rows_of_pyiceberg", rows)
    db.execute("create or replace table lake as from rows_of_pyiceberg")
    db.unregister("rows_of_pyiceberg")


def read_by_chdb(db, metadata, _):
    """In the types that DuckDB gives the columns: each has its own, and a cast that would change a value
    fails."""
    import chdb

    read_by_duckdb(db, metadata)
    types = columns(db, "lake")
    # It reads only files below where it starts.
    os.chdir("/")
    folder, _, file = metadata.removeprefix("file://").rpartition("/metadata/")
    lake = f"icebergLocal('{folder}', settings iceberg_metadata_file_path = 'metadata/{file}')"
    # Bytes need not be a text.
    as_bytes = "output_format_arrow_string_as_string = 0"
    found = chdb.connect(":memory:").query(f"select * from {lake} settings {as_bytes}", "ArrowTable")
    db.register("rows_of_chdb", found)
    types = asked_of_chdb(types)
    given = columns(db, "rows_of_chdb")
    made = ", ".join(f"{of_chdb(quote(name), given[name], kind)} as {quote(name)}" for name, kind in types.items())
    db.execute(f"create or replace table lake as select {made} from rows_of_chdb")
    db.unregister("rows_of_chdb")


def asked_of_chdb(types):
    return {name: kind for name, kind in types.items() if not re.fullmatch(r"TIME|.*\[\]|(STRUCT|MAP)\(.*", kind)}


def of_chdb(name, given, wanted):
    """Bytes that are a text, or a UUID, to others."""
    if given == wanted:
        return name
    if (given, wanted) == ("BLOB", "VARCHAR"):
        return f"decode({name})"
    return f"cast({name} as {wanted})"


READERS = {"duckdb": read_by_duckdb, "pyiceberg": read_by_pyiceberg, "chdb": read_by_chdb}


def columns(db, table):
    return {name: type_ for name, type_, *_ in db.execute(f"describe {table}").fetchall()}


def compare(db, reader, truth_types):
    lake_types = columns(db, "lake")
    if reader == "chdb":
        truth_types = asked_of_chdb(truth_types)
    lake_names = {name for name in lake_types if name in truth_types or not name.startswith("_")}
    if lake_names != set(truth_types):
        return [f"{reader}: columns are {sorted(lake_names)}, expected {sorted(truth_types)}"]
    problems = [
        f"{reader}: column {name} is {lake_types[name]}, the query has {type_}: cast it there"
        for name, type_ in truth_types.items()
        if not comparable(type_, lake_types[name])
    ]
    if problems:
        return problems
    names = ", ".join(quote(name) for name in truth_types)
    casts = ", ".join(f"cast({quote(name)} as {lake_types[name]}) as {quote(name)}" for name in truth_types)
    sides = {
        "in the query only": f"select {casts} from truth except all select {names} from lake",
        "in the lake only": f"select {names} from lake except all select {casts} from truth",
    }
    for side, sql in sides.items():
        count = db.execute(f"select count(*) from ({sql})").fetchone()[0]
        if count:
            sample = db.execute(f"select * from ({sql}) order by all limit {SHOWN}").fetchall()
            problems.append(f"{reader}: {count} rows {side}: {sample}")
    return problems


INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}


def comparable(truth, lake):
    """Whether casting the query's type to the lake's cannot hide a difference."""
    if truth == lake or (truth in INTEGERS and lake in INTEGERS):
        return True
    if lake == "VARCHAR":
        return truth == "JSON" or truth.startswith("ENUM")
    if truth.endswith("[]") and lake.endswith("[]"):
        return comparable(truth[:-2], lake[:-2])
    # Iceberg's uuid is 16 bytes to pyiceberg, and a time has no zone in either.
    return {truth, lake} in ({"UUID", "BLOB"}, {"FLOAT", "REAL"})


def quote(name):
    return '"' + name.replace('"', '""') + '"'


if __name__ == "__main__":
    main()
