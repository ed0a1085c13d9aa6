#!/usr/bin/env bash
# What do the triggers of `change: trigger` cost the application that writes to a MariaDB?
#
#   FRAZIL_BENCH_MARIADB=mariadb://user:password@host:port benches/triggers_mariadb.sh [ROUNDS]
#
# Needs the client `mariadb`, and a user who may create databases and triggers. Two tables, equal but for the
# triggers that `frazil setup` installs on one of them; each measurement of one is next to that of the other, in
# each round. Prints statements a second (single rows, committed one by one, by a loop in the server, so that the
# way there is not measured) or milliseconds (bulk), the best of all rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${FRAZIL_BENCH_MARIADB:?give the URL of a MariaDB server, without a database}"
rounds=${1:-3}
singles=${FRAZIL_BENCH_SINGLES:-20000}
server=${FRAZIL_BENCH_MARIADB%/}
database=frazil_bench_triggers
frazil=${FRAZIL_BENCH_BINARY:-target/release/frazil}
[ -n "${FRAZIL_BENCH_BINARY:-}" ] || cargo build --release --bin frazil
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[[ $server =~ ^[a-z]+://([^:@]+)(:([^@]*))?@([^:/]+):([0-9]+)$ ]] || { echo "no such URL" >&2; exit 1; }
printf '[client]\nuser=%s\npassword="%s"\nhost=%s\nport=%s\nprotocol=tcp\n' \
  "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]}" "${BASH_REMATCH[4]}" "${BASH_REMATCH[5]}" >"$work/client.cnf"
sql() { mariadb --defaults-file="$work/client.cnf" -BN "$1" -e "$2"; }

sql mysql "drop database if exists $database; create database $database"
for table in plain triggered; do
  sql $database "create table $table (id bigint auto_increment primary key, a varchar(100) not null, n int not null, at timestamp not null default now())"
  sql $database "insert into $table (id, a, n) select seq, repeat('a', 80), seq from seq_1_to_200000"
done
cat >"$work/frazil.yaml" <<YAML
connections: { shop: "$server/$database" }
lake: { warehouse: $work/lake, catalog: filesystem }
streams: { "$database.triggered": { source: shop, change: trigger } }
YAML
"$frazil" --config "$work/frazil.yaml" setup >/dev/null
changes=$(sql $database "select changes from _frazil_tables")

. benches/measure.sh
since="timestampdiff(microsecond, @begun, sysdate(6))"

singly() { # NAME TABLE STATEMENT
  higher "$1 $2" "$(mariadb --defaults-file="$work/client.cnf" -BN $database <<SQL
set @begun = sysdate(6);
delimiter //
begin not atomic
  declare i int default 0;
  while i < $singles do ${3//TABLE/$2}; set i = i + 1; end while;
end//
delimiter ;
select round($singles * 1000000 / $since);
SQL
)"
}
bulk() { # NAME TABLE STATEMENT
  lower "$1 $2" "$(sql $database "begin; set @begun = sysdate(6); ${3//TABLE/$2}; select round($since / 1000); rollback")"
}

names=(update insert 'bulk insert' 'bulk update' 'bulk delete' 'bulk key change')
for _ in $(seq "$rounds"); do
  for table in plain triggered; do
    singly update $table "update TABLE set n = n + 1 where id = i * 7919 % 200000 + 1"
    singly insert $table "insert into TABLE (a, n) values (repeat('a', 80), 1)"
    bulk 'bulk insert' $table "insert into TABLE (id, a, n) select seq, repeat('a', 80), seq from seq_5000001_to_5100000"
    bulk 'bulk update' $table "update TABLE set n = n + 1 where id <= 100000"
    bulk 'bulk delete' $table "delete from TABLE where id <= 100000"
    bulk 'bulk key change' $table "update TABLE set id = id + 10000000 where id <= 100000"
    sql $database "truncate $changes"
  done
done
printf '%-16s %12s %12s %8s\n' what without with ratio
for name in "${names[@]}"; do
  a=${best["$name plain"]:-} b=${best["$name triggered"]:-}
  [ -z "$a" ] || printf '%-16s %12s %12s %8s\n' "$name" "$a" "$b" "$(awk "BEGIN { printf \"%.2f\", $b / $a }")"
done
sql mysql "drop database $database"
