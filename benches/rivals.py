"""What others need for a full read of the table of `end_to_end.sh` into an Iceberg table.

    python benches/rivals.py postgres://user@host:port/frazil_bench_src DIRECTORY

Run it beside `end_to_end.sh` on the same server. Needs: pip install connectorx pyarrow
"pyiceberg[sql-sqlite]" "dlt[postgres,filesystem,pyiceberg]" "psycopg[binary]". Each runs in a process of its own;
what is not installed is said so. Prints: who, seconds, CPU seconds, MiB.
"""

import os
import resource
import shutil
import subprocess
import sys
import time


def connectorx(url, directory):
    """connectorx in two partitions to Arrow, appended by pyiceberg."""
    import connectorx
    from pyiceberg.catalog.sql import SqlCatalog

    rows = connectorx.read_sql(
        url, "select * from lineitem", return_type="arrow", partition_on="l_orderkey", partition_num=2
    )
    catalog = SqlCatalog("lake", uri=f"sqlite:///{directory}/catalog.db", warehouse=f"file://{directory}")
    catalog.create_namespace("bench")
    catalog.create_table("bench.lineitem", schema=rows.schema).append(rows)


def dlt(url, directory):
    """dlt with its connectorx backend, Iceberg on the local disk."""
    os.environ.update(DLT_DATA_DIR=f"{directory}/state", RUNTIME__LOG_LEVEL="ERROR", RUNTIME__DLTHUB_TELEMETRY="false")
    import dlt
    from dlt.sources.sql_database import sql_table

    # SQLAlchemy knows the database by another name, and looks for a driver that need not be here.
    place = url.partition("://")[2]
    table = sql_table(
        f"postgresql+psycopg://{place}",
        table="lineitem",
        backend="connectorx",
        backend_kwargs={"return_type": "arrow", "conn": f"postgresql://{place}"},
    )
    target = dlt.destinations.filesystem(bucket_url=f"file://{directory}/lake")
    pipeline = dlt.pipeline("bench", destination=target, dataset_name="bench", pipelines_dir=f"{directory}/pipelines")
    pipeline.run(table, table_format="iceberg", write_disposition="replace").raise_on_failed_jobs()


RIVALS = {rival.__name__: rival for rival in [connectorx, dlt]}


def measure(name, url, directory):
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, __file__, url, directory, name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"{name:12} does not run here: {last}")
        return
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The largest child so far: run from the smallest to the largest to tell them apart.
    print(f"{name:12} {seconds:8.2f} s {cpu:8.2f} CPU s {after.ru_maxrss // 1024:6} MiB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        RIVALS[sys.argv[3]](sys.argv[1], sys.argv[2])
    else:
        for rival in RIVALS:
            measure(rival, sys.argv[1], os.path.join(os.path.abspath(sys.argv[2]), rival))
