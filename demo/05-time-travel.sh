#!/usr/bin/env bash
# The lake as it was, as it is, and what happened in between.
source "$(dirname "$0")/lib.sh"
places
show frazil snapshots public.orders
# Of the two newest snapshots, the older one is from before the day of business.
mapfile -t ids < <(frazil query --output csv \
  'select snapshot_id from "public"."orders$snapshots" order by committed_at desc limit 2' | tail -n +2)
now=${ids[0]} before=${ids[1]}
show frazil query "select status, count(*) as orders from public.orders group by status order by status" --as-of "$before"
show frazil query "select status, count(*) as orders from public.orders group by status order by status"
show frazil query "select _change, count(*) as orders from changes('public.orders', $before, $now) group by _change"
