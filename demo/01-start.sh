#!/usr/bin/env bash
# Two databases: a shop with rows in it, and an empty warehouse.
source "$(dirname "$0")/lib.sh"
mkdir -p "$work"
export PGOPTIONS='-c client_min_messages=warning'

if [[ -n ${PGHOST:-} ]]; then
  base="postgres://${PGUSER:-postgres}${PGPASSWORD:+:$PGPASSWORD}@$PGHOST:${PGPORT:-5432}"
else
  bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
  bin=${bin:-$(dirname "$(command -v initdb || echo /missing/initdb)")}
  if [[ ! -x $bin/initdb ]]; then
    echo "no Postgres here: install one, or set PGHOST, PGPORT, PGUSER and PGPASSWORD" >&2
    exit 1
  fi
  port=${PGPORT:-54329}
  # Postgres refuses to run as root.
  as=()
  if [[ $(id -u) = 0 ]]; then as=(setpriv --reuid=postgres --regid=postgres --clear-groups); fi
  data=$(mktemp -d)
  if [[ $(id -u) = 0 ]]; then chown postgres "$data"; fi
  "${as[@]}" "$bin/initdb" -D "$data/pg" -U postgres -A trust >/dev/null
  "${as[@]}" "$bin/pg_ctl" -D "$data/pg" -w -l "$data/log" \
    -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$data" start >/dev/null
  echo "data=$data bin=$bin" >"$work/server"
  base="postgres://postgres@127.0.0.1:$port"
fi

for name in frazil_shop frazil_warehouse; do
  psql -X -q "$base/postgres" -c "drop database if exists $name" -c "create database $name"
done
umask 077
cat >"$work/places" <<PLACES
DEMO_SHOP_URL='$base/frazil_shop'
DEMO_WAREHOUSE_URL='$base/frazil_warehouse'
PLACES
rm -rf "$work/lake"
places
psql_shop -f shop.sql
psql_shop -c "select 'customers' as table, count(*) from customers
  union all select 'products', count(*) from products
  union all select 'orders', count(*) from orders
  union all select 'order_items', count(*) from order_items"
echo "ready: now demo/02-first-run.sh"
