"""How fast are TPC-H Q1, Q6 and Q3 on lake tables, beside DuckDB's iceberg extension and chdb?

    query.py FRAZIL LAKE [ROUNDS]

FRAZIL is the program, LAKE a warehouse with `public.lineitem`, `public.orders` and `public.customer` (load
what `tpchgen-cli` makes into a Postgres and `frazil sync` it). All engines take turns in each round, and
all answers are compared. Of frazil, the whole process is timed: start, planning, rows on stdout; the
others run each query on a new connection of one warm process, which is less. `start` is what frazil needs
for `select 1`. The best of the rounds counts; CPU seconds are those of the whole process, on all cores. With the right to drop the page cache, a cold round is timed too.

Needs Python with duckdb, duckdb-extension-iceberg, duckdb-extension-avro and, optionally, chdb.
"""

import decimal
import json
import pathlib
import resource
import subprocess
import sys
import time

QUERIES = {
    "Q1": """
        select l_returnflag, l_linestatus, sum(l_quantity) as sum_qty, sum(l_extendedprice) as sum_base_price,
            sum(l_extendedprice * (1 - l_discount)) as sum_disc_price,
            sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) as sum_charge, avg(l_quantity) as avg_qty,
            avg(l_extendedprice) as avg_price, avg(l_discount) as avg_disc, count(*) as count_order
        from {lineitem} as l where l_shipdate <= date '1998-09-02'
        group by l_returnflag, l_linestatus order by l_returnflag, l_linestatus""",
    "Q6": """
        select sum(l_extendedprice * l_discount) as revenue from {lineitem} as l
        where l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01'
            and l_discount between 0.05 and 0.07 and l_quantity < 24""",
    "Q3": """
        select l_orderkey, sum(l_extendedprice * (1 - l_discount)) as revenue, o_orderdate, o_shippriority
        from {customer} as c, {orders} as o, {lineitem} as l
        where c_mktsegment = 'BUILDING' and c_custkey = o_custkey and l_orderkey = o_orderkey
            and o_orderdate < date '1995-03-15' and l_shipdate > date '1995-03-15'
        group by l_orderkey, o_orderdate, o_shippriority order by revenue desc, o_orderdate limit 10""",
    "count": "select count(*) as n from {lineitem} as l",
    "one row": "select l_comment from {lineitem} as l where l_orderkey = 3000000 and l_linenumber = 1",
}
TABLES = ["lineitem", "orders", "customer"]


def main():
    frazil, lake = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    engines = {"frazil": lambda sql: by_frazil(frazil, lake, sql), "duckdb": duckdb_on(lake)}
    try:
        engines["chdb"] = chdb_on(lake)
    except ImportError:
        print("without chdb", file=sys.stderr)
    warm, cold = {}, {}
    answers = {}
    for number in range(rounds + 1):
        note(warm, "start", "frazil", number, lambda: by_frazil(frazil, lake, "select 1"))
        for query, sql in QUERIES.items():
            for engine, run in engines.items():
                rows = note(warm, query, engine, number, lambda: run(sql))
                answers.setdefault(query, {})[engine] = rounded(rows)
    for query, sql in QUERIES.items():
        for engine, run in engines.items():
            if forget_pages():
                note(cold, query, engine, 1, lambda: run(sql))
    for query, by_engine in answers.items():
        for engine, rows in by_engine.items():
            if rows != by_engine["duckdb"]:
                sys.exit(f"{engine} answers {query} otherwise:\n{rows}\n{by_engine['duckdb']}")
    print("| query | " + " | ".join(f"{engine} warm | cold | CPU" for engine in engines) + " |")
    print("|---" * (1 + 3 * len(engines)) + "|")
    unknown = (float("nan"), float("nan"))
    for query in ["start", *QUERIES]:
        cells = []
        for engine in engines:
            (took, used), (took_cold, _) = (times.get((query, engine), unknown) for times in (warm, cold))
            cells += [f"{took:.3f}", f"{took_cold:.3f}", f"{used:.3f}"]
        print(f"| {query} | " + " | ".join(cells).replace("nan", "") + " |")


def note(times, query, engine, number, run):
    """Times a run, by the clock and in CPU seconds; the first round only warms up."""
    start, used = time.perf_counter(), cpu()
    rows = run()
    took = (time.perf_counter() - start, cpu() - used)
    if number > 0:
        best = times.get((query, engine), took)
        times[query, engine] = tuple(map(min, took, best))
    return rows


def cpu():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def by_frazil(program, lake, sql):
    sql = sql.format(**{table: f"public.{table}" for table in TABLES})
    command = [program, "query", "--lake", lake, "--memory", "2GiB", "--output", "json", sql]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [list(json.loads(line).values()) for line in said.splitlines()]


def metadata_of(lake, table):
    folder = pathlib.Path(lake).absolute() / "public" / table / "metadata"
    return folder / f"v{(folder / 'version-hint.text').read_text()}.metadata.json"


def duckdb_on(lake):
    import duckdb

    names = {table: f"iceberg_scan('{metadata_of(lake, table)}')" for table in TABLES}
    db = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    for name in ["avro", "iceberg"]:
        folder = pathlib.Path(__import__(f"duckdb_extension_{name}").__file__).parent
        [file] = folder.glob(f"extensions/v{duckdb.__version__}/*.duckdb_extension")
        db.execute(f"load '{file}'")
    return lambda sql: [list(row) for row in db.cursor().execute(sql.format(**names)).fetchall()]


def chdb_on(lake):
    import chdb

    names = {table: f"icebergLocal('{pathlib.Path(lake).absolute()}/public/{table}')" for table in TABLES}
    db = chdb.connect(":memory:?user_files_path=/")

    def run(sql):
        said = str(db.query(sql.format(**names), "JSONCompactEachRow"))
        return [json.loads(line) for line in said.splitlines()]

    return run


def forget_pages():
    try:
        subprocess.run(["sync"], check=True)
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    except OSError:
        return False


def rounded(rows):
    """Engines differ in the scale of averages and in how they write numbers."""

    def value(cell):
        try:
            return str(round(decimal.Decimal(str(cell)), 1))
        except decimal.InvalidOperation:
            return str(cell)

    return [[value(cell) for cell in row] for row in rows]


if __name__ == "__main__":
    main()
