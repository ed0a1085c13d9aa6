#!/usr/bin/env bash
# What do the triggers of `change: trigger` cost the application that writes?
#
#   FRAZIL_BENCH_POSTGRES=postgres://user@host:port benches/triggers.sh [ROUNDS]
#
# Needs psql, pgbench, and a Postgres whose user may create databases. Two tables, equal but for the triggers
# that `frazil setup` installs on one of them; each measurement of one is next to that of the other, in each
# round. Prints statements a second (single rows, one client) or milliseconds (bulk), the best of all rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${FRAZIL_BENCH_POSTGRES:?give the URL of a Postgres server, without a database}"
rounds=${1:-3}
seconds=${FRAZIL_BENCH_SECONDS:-4}
server=${FRAZIL_BENCH_POSTGRES%/}
database=$server/frazil_bench_triggers
frazil=${FRAZIL_BENCH_BINARY:-target/release/frazil}
[ -n "${FRAZIL_BENCH_BINARY:-}" ] || cargo build --release --bin frazil
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sql() { psql -XqAt -v ON_ERROR_STOP=1 "$1" -c "$2"; }

sql "$server/postgres" "drop database if exists frazil_bench_triggers"
sql "$server/postgres" "create database frazil_bench_triggers"
for table in plain triggered; do
  sql "$database" "create table $table (id bigint primary key, a text not null, n int not null, at timestamptz not null default now())"
  sql "$database" "create sequence s_$table cache 1000"
  sql "$database" "insert into $table select i, repeat('a', 80), i from generate_series(1, 200000) i"
done
cat >"$work/frazil.yaml" <<YAML
connections: { shop: "$database" }
lake: { warehouse: $work/lake, catalog: filesystem }
streams: { "public.triggered": { source: shop, change: trigger } }
YAML
"$frazil" --config "$work/frazil.yaml" setup >/dev/null
changes=_frazil.$(sql "$database" "select changes from _frazil.tables")
sql "$database" "vacuum (analyze)"

. benches/measure.sh

singly() { # NAME TABLE STATEMENT
  printf '\\set id random(1, 200000)\n%s;\n' "${3//TABLE/$2}" >"$work/script.sql"
  higher "$1 $2" "$(pgbench -n -M prepared -c 1 -T "$seconds" -f "$work/script.sql" "$database" 2>/dev/null |
    sed -n 's/^tps = \([0-9.]*\).*/\1/p' | head -1)"
}
bulk() { # NAME TABLE STATEMENT
  lower "$1 $2" "$(psql -XqAt "$database" -c '\timing on' -c "begin" -c "${3//TABLE/$2}" -c "rollback" |
    sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | sort -n | tail -1)"
}

names=(update insert 'bulk insert' 'bulk update' 'bulk delete' 'bulk key change')
for _ in $(seq "$rounds"); do
  for table in plain triggered; do
    # What is not on the disk yet is nobody's cost here.
    sql "$database" "set synchronous_commit = off; checkpoint"
    export PGOPTIONS='-c synchronous_commit=off'
    singly update $table "update TABLE set n = n + 1 where id = :id"
    singly insert $table "insert into TABLE values (1000000 + nextval('s_TABLE'), repeat('a', 80), 1)"
    bulk 'bulk insert' $table "insert into TABLE select i, repeat('a', 80), i from generate_series(5000001, 5100000) i"
    bulk 'bulk update' $table "update TABLE set n = n + 1 where id <= 100000"
    bulk 'bulk delete' $table "delete from TABLE where id <= 100000"
    bulk 'bulk key change' $table "update TABLE set id = id + 10000000 where id <= 100000"
    unset PGOPTIONS
    sql "$database" "truncate $changes"
    sql "$database" "vacuum $table"
  done
done
printf '%-16s %12s %12s %8s\n' what without with ratio
for name in "${names[@]}"; do
  a=${best["$name plain"]:-} b=${best["$name triggered"]:-}
  [ -z "$a" ] || printf '%-16s %12s %12s %8s\n' "$name" "$a" "$b" "$(awk "BEGIN { printf \"%.2f\", $b / $a }")"
done
sql "$server/postgres" "drop database frazil_bench_triggers"
