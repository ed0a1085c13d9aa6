#!/usr/bin/env bash
# Changes from MariaDB's binlog into the lake, beside the server's own client that throws them away.
#
#   FRAZIL_BENCH_MARIADB=mariadb://user@host:port benches/mysql_log.sh [ROUNDS] [CHANGES]
#
# Needs mariadb, mariadb-binlog, GNU time, and a MariaDB with `binlog_format = ROW` whose user may create
# databases and replicate (no password, or one in MYSQL_PWD). Makes the database frazil_bench_log anew. The mix:
# 20 % inserts, 60 % updates, 20 % deletes in a table of a million rows, in transactions of 1,000 changes, then of
# ten; then one transaction that inserts FRAZIL_BENCH_LARGE rows (1 million).
# Prints: what, seconds of the best round, changes a second, ratio to the limit above it, CPU seconds of the
# client, MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${FRAZIL_BENCH_MARIADB:?give the URL of a MariaDB server, without a database}"
rounds=${1:-3}
changes=${2:-600000}
large=${FRAZIL_BENCH_LARGE:-1000000}
address=${FRAZIL_BENCH_MARIADB#*://}
user=${address%%@*} host=${address#*@} port=${address##*:}
host=${host%%:*} port=${port%%/*}
src=mariadb://$address/frazil_bench_log
work=${FRAZIL_BENCH_DIR:-target/bench}/mysql_log
rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)
frazil=${FRAZIL_BENCH_BINARY:-target/release/frazil}
[ -n "${FRAZIL_BENCH_BINARY:-}" ] || cargo build --release --bin frazil

client=(--host="$host" --port="$port" --user="$user" --protocol=tcp)
sql() { mariadb "${client[@]}" -N -B "${@:2}" -e "$1"; }

prepare() {
  sql "drop database if exists frazil_bench_log; create database frazil_bench_log"
  sql "create table item (id bigint primary key, part int not null, quantity decimal(15,2) not null,
    price decimal(15,2) not null, shipped date not null, mode varchar(10) not null, comment varchar(100) not null,
    updated_at datetime(6) not null default now(6));
    insert into item select seq, seq % 1000, seq % 50, seq * 1.25, date '2026-01-01' + interval seq % 365 day,
      concat('mode ', seq % 7), concat('a comment about item ', seq), now(6) from seq_1_to_1000000;
    analyze table item" frazil_bench_log >/dev/null
  # Fresh keys are inserted, others updated, the oldest deleted.
  sql "delimiter //
    create procedure churn(transactions int, size int)
    begin
      declare first, last, t bigint; declare fifth int default size div 5;
      select min(id), max(id) into first, last from item;
      set t = 1;
      while t <= transactions do
        start transaction;
        insert into item select last + seq, seq % 1000, seq % 50, seq * 1.25, date '2026-01-01', 'mode 1',
          concat('a comment about item ', last + seq), now(6) from seq_1_to_1000000 limit fifth;
        update item set quantity = quantity + 1, updated_at = now(6)
          where id between first + fifth + t * 7 % 500000 and first + fifth + t * 7 % 500000 + 3 * fifth - 1;
        delete from item where id between first and first + fifth - 1;
        commit;
        set first = first + fifth, last = last + fifth, t = t + 1;
      end while;
    end //" frazil_bench_log
}

. benches/measure.sh

place() { sql "show master status" | awk '{ print $1, $2 }'; }
# The same part of the log.
receive() { # NAME FILE FROM TO
  timed "$1" mariadb-binlog "${client[@]}" --read-from-remote-server --start-position="$3" --stop-position="$4" "$2"
}

prepare
sync=("$frazil" sync --from "$src" --table frazil_bench_log.item --change log --lake "$work/lake" --output json)
timed "first read" "${sync[@]}"
sql "set global max_binlog_size = 1073741824"
for size in 1000 10; do
  limit="limit: mariadb-binlog, transactions of $size"
  ours="changes into the lake, transactions of $size"
  for ((i = 0; i < rounds; i++)); do
    sql "flush binary logs"
    read -r file from < <(place)
    sql "call churn($((changes / size)), $size)" frazil_bench_log
    read -r _ to < <(place)
    receive "$limit" "$file" "$from" "$to"
    timed "$ours" "${sync[@]}"
  done
  row "$limit" "$limit" "$changes"
  row "$ours" "$limit" "$changes"
done

sql "flush binary logs"
read -r file from < <(place)
sql "insert into item select 1000000000 + seq, seq % 1000, seq % 50, seq * 1.25, date '2026-01-01', 'mode 1',
  concat('a comment about item ', seq), now(6) from seq_1_to_$large" frazil_bench_log
read -r _ to < <(place)
limit="limit: mariadb-binlog, one transaction"
ours="one transaction into the lake"
receive "$limit" "$file" "$from" "$to"
timed "$ours" "${sync[@]}"
row "$limit" "$limit" "$large"
row "$ours" "$limit" "$large"
