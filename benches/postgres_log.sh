#!/usr/bin/env bash
# Changes from Postgres' log into the lake, beside the server's own client that throws them away.
#
#   FRAZIL_BENCH_POSTGRES=postgres://user@host:port benches/postgres_log.sh [ROUNDS] [CHANGES]
#
# Needs psql, pg_recvlogical, GNU time, and a Postgres with `wal_level = logical` whose user may create
# databases and replicate. Makes the database frazil_bench_log anew. The mix: 20 % inserts, 60 % updates,
# 20 % deletes in a table of a million rows, in transactions of 1,000 changes, then of ten; then one
# transaction that inserts FRAZIL_BENCH_LARGE rows (10 million).
# Prints: what, seconds of the best round, changes a second, ratio to the limit above it, CPU seconds of the
# client, MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${FRAZIL_BENCH_POSTGRES:?give the URL of a Postgres server, without a database}"
rounds=${1:-3}
changes=${2:-1200000}
large=${FRAZIL_BENCH_LARGE:-10000000}
server=${FRAZIL_BENCH_POSTGRES%/}
src=$server/frazil_bench_log
work=${FRAZIL_BENCH_DIR:-target/bench}/log
rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)
frazil=${FRAZIL_BENCH_BINARY:-target/release/frazil}
[ -n "${FRAZIL_BENCH_BINARY:-}" ] || cargo build --release --bin frazil

sql() { psql -XqAt -v ON_ERROR_STOP=1 "${2:-$src}" -c "$1"; }

prepare() {
  sql "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = 'frazil_bench_log'" "$server/postgres"
  PGOPTIONS="-c client_min_messages=error" sql "drop database if exists frazil_bench_log" "$server/postgres"
  sql "create database frazil_bench_log" "$server/postgres"
  sql "create table item (id bigint primary key, part integer not null, quantity numeric(15,2) not null,
    price numeric(15,2) not null, shipped date not null, mode varchar(10) not null, comment text not null,
    updated_at timestamptz not null default now());
    insert into item select i, i % 1000, i % 50, i * 1.25, date '2026-01-01' + (i % 365)::int, 'mode ' || i % 7,
      'a comment about item ' || i from generate_series(1, 1000000) i;
    analyze item"
  # Fresh keys are inserted, others updated, the oldest deleted.
  sql "create procedure churn(transactions integer, size integer) language plpgsql as \$\$
    declare
      first bigint; last bigint; fifth integer := size / 5;
    begin
      select min(id), max(id) into first, last from item;
      for t in 1..transactions loop
        insert into item select i, i % 1000, i % 50, i * 1.25, date '2026-01-01', 'mode ' || i % 7,
          'a comment about item ' || i from generate_series(last + 1, last + fifth) i;
        update item set quantity = quantity + 1, updated_at = clock_timestamp()
          where id between first + fifth + t * 7 % 500000 and first + fifth + t * 7 % 500000 + 3 * fifth - 1;
        delete from item where id between first and first + fifth - 1;
        first := first + fifth; last := last + fifth;
        commit;
      end loop;
    end \$\$"
}

. benches/measure.sh

# The same changes, from a copy of the slot.
receive() { # NAME
  local publication own
  own=$(sql "select slot_name from pg_replication_slots where database = 'frazil_bench_log' and slot_name <> 'limit'")
  publication=$(sql "select pubname from pg_publication")
  sql "select pg_copy_logical_replication_slot('$own', 'limit')" >/dev/null
  timed "$1" pg_recvlogical -d "$src" -S limit --start -f /dev/null --endpos "$(sql "select pg_current_wal_lsn()")" \
    -o proto_version=1 -o publication_names="\"$publication\"" -o binary=true
  sql "select pg_drop_replication_slot('limit')" >/dev/null
}

prepare
sync=("$frazil" sync --from "$src" --table public.item --change log --lake "$work/lake" --output json)
timed "first read" "${sync[@]}"
for size in 1000 10; do
  limit="limit: pg_recvlogical, transactions of $size"
  ours="changes into the lake, transactions of $size"
  for ((i = 0; i < rounds; i++)); do
    sql "call churn($((changes / size)), $size)"
    receive "$limit"
    timed "$ours" "${sync[@]}"
  done
  row "$limit" "$limit" "$changes"
  row "$ours" "$limit" "$changes"
done

sql "insert into item select 1000000000 + i, i % 1000, i % 50, i * 1.25, date '2026-01-01', 'mode ' || i % 7,
  'a comment about item ' || i from generate_series(1, $large) i"
limit="limit: pg_recvlogical, one transaction"
ours="one transaction into the lake"
receive "$limit"
timed "$ours" "${sync[@]}"
row "$limit" "$limit" "$large"
row "$ours" "$limit" "$large"
