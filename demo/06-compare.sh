#!/usr/bin/env bash
# Shop and warehouse, row by row and both ways. Fails when a row differs.
source "$(dirname "$0")/lib.sh"
places
work_sum() { # an order-independent sum of all rows of a table
  psql -X -q -A -t "$1" -c "select count(*), sum(hashtextextended(t::text, 0)::numeric) from (select * from public.$2) t"
}
status=0
for table in customers products orders order_items; do
  shop=$(work_sum "$DEMO_SHOP_URL" "$table")
  warehouse=$(work_sum "$DEMO_WAREHOUSE_URL" "$table")
  if [[ $shop = "$warehouse" ]]; then verdict=equal; else verdict=DIFFERENT; status=1; fi
  printf '%-12s %-9s %s rows\n' "$table" "$verdict" "${shop%%|*}"
done
exit $status
