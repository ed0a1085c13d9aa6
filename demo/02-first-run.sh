#!/usr/bin/env bash
# Says what it would do, then moves every row.
source "$(dirname "$0")/lib.sh"
places
show frazil check
show frazil run
