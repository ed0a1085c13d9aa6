#!/usr/bin/env bash
# The whole program beside the limit that the database sets, in one run on one machine.
#
#   FRAZIL_BENCH_POSTGRES=postgres://user@host:port benches/end_to_end.sh [ROUNDS]
#
# Needs psql, python3 with venv, GNU time, and a Postgres whose user may create databases. Makes the
# databases frazil_bench_src and frazil_bench_dwh (TPC-H at scale factor 1) unless they are there.
# Prints: what, seconds of the best round, ratio to the limit above it, CPU seconds, MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${FRAZIL_BENCH_POSTGRES:?give the URL of a Postgres server, without a database}"
rounds=${1:-3}
server=${FRAZIL_BENCH_POSTGRES%/}
src=$server/frazil_bench_src
dwh=$server/frazil_bench_dwh
work=${FRAZIL_BENCH_DIR:-target/bench}
mkdir -p "$work"
work=$(cd "$work" && pwd)
frazil=${FRAZIL_BENCH_BINARY:-target/release/frazil}
[ -n "${FRAZIL_BENCH_BINARY:-}" ] || cargo build --release --bin frazil

sql() { psql -XqAt -v ON_ERROR_STOP=1 "$1" -c "$2"; }

lineitem_columns="l_orderkey bigint not null, l_partkey bigint not null, l_suppkey bigint not null,
  l_linenumber int not null, l_quantity numeric(15,2) not null, l_extendedprice numeric(15,2) not null,
  l_discount numeric(15,2) not null, l_tax numeric(15,2) not null, l_returnflag char(1) not null,
  l_linestatus char(1) not null, l_shipdate date not null, l_commitdate date not null,
  l_receiptdate date not null, l_shipinstruct varchar(25) not null, l_shipmode varchar(10) not null,
  l_comment varchar(44) not null, updated_at timestamptz not null default '2026-01-01'"

prepare() {
  sql "$server/postgres" "select 1 from pg_database where datname = 'frazil_bench_src'" | grep -q 1 && return
  echo "preparing TPC-H at scale factor 1" >&2
  if [ ! -x "$work/venv/bin/tpchgen-cli" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" -q install tpchgen-cli==4.0.0
  fi
  "$work/venv/bin/tpchgen-cli" csv -s 1 --tables lineitem --output-dir="$work/tpch"
  sql "$server/postgres" "create database frazil_bench_src"
  sql "$server/postgres" "create database frazil_bench_dwh"
  sql "$src" "create table lineitem ($lineitem_columns)"
  local names="l_orderkey,l_partkey,l_suppkey,l_linenumber,l_quantity,l_extendedprice,l_discount,l_tax"
  names+=",l_returnflag,l_linestatus,l_shipdate,l_commitdate,l_receiptdate,l_shipinstruct,l_shipmode,l_comment"
  psql -Xq "$src" -c "\\copy lineitem($names) from '$work/tpch/lineitem.csv' csv header"
  sql "$src" "alter table lineitem add primary key (l_orderkey, l_linenumber)"
  sql "$src" "create index on lineitem (updated_at)"
  sql "$src" "vacuum (freeze, analyze) lineitem"
}

. benches/measure.sh

prepare
extract=("$frazil" sync --from "$src" --table public.lineitem --lake "$work/lake" --output json)
for ((i = 0; i < rounds; i++)); do
  timed "limit: COPY to /dev/null" psql -Xq "$src" -c "copy lineitem to stdout (format binary)"
  rm -rf "$work/lake"
  timed "full extract into Iceberg" "${extract[@]}"
  timed "nothing to do" "${extract[@]}"
done
row "limit: COPY to /dev/null" "limit: COPY to /dev/null"
row "full extract into Iceberg" "limit: COPY to /dev/null"
row "nothing to do" "limit: COPY to /dev/null"
du -sm "$work/lake" | awk '{ print "size of the lake: " $1 " MB" }'

echo
for ((i = 0; i < rounds; i++)); do
  stamp=$(sql "$src" "select clock_timestamp()")
  sql "$src" "update lineitem set l_quantity = l_quantity + 1, updated_at = clock_timestamp() where l_orderkey % 100 = $i"
  timed "limit: index scan and COPY of 1 %" psql -Xq "$src" \
    -c "copy (select * from lineitem where updated_at >= '$stamp') to stdout (format binary)"
  timed "1 % of the rows changed, with commit" "${extract[@]}"
done
row "limit: index scan and COPY of 1 %" "limit: index scan and COPY of 1 %"
row "1 % of the rows changed, with commit" "limit: index scan and COPY of 1 %"

echo
for ((i = 0; i < rounds; i++)); do
  sql "$src" "update lineitem set l_quantity = l_quantity + 1, updated_at = clock_timestamp()
    where l_orderkey in (select (random() * 6000000)::int from generate_series(1, 1000))"
  timed "about 1,000 random keys into a 6 M row table" "${extract[@]}"
done
row "about 1,000 random keys into a 6 M row table" "about 1,000 random keys into a 6 M row table"

echo
load=("$frazil" load --from "$src" --table public.lineitem --lake "$work/lake" --to "$dwh" --target-table public.lineitem --output json)
for ((i = 0; i < rounds; i++)); do
  sql "$dwh" "set client_min_messages = error; drop table if exists lineitem, frazil_applied, by_hand"
  sql "$dwh" "create table by_hand ($lineitem_columns)"
  timed "limit: COPY, then add the key" sh -c "psql -Xq '$src' -c 'copy lineitem to stdout (format binary)' |
    psql -Xq '$dwh' -c 'copy by_hand from stdin (format binary)' && psql -Xq '$dwh' -c 'alter table by_hand add primary key (l_orderkey, l_linenumber)'"
  timed "first load" "${load[@]}"
done
row "limit: COPY, then add the key" "limit: COPY, then add the key"
row "first load" "limit: COPY, then add the key"
