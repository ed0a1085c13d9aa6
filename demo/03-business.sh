#!/usr/bin/env bash
# A day in the shop: 200 customers and 500 orders change, 300 orders and 700 items come, 10 products go.
source "$(dirname "$0")/lib.sh"
places
show psql_shop -1 -f business.sql
