#!/usr/bin/env bash
# Moves only what changed.
source "$(dirname "$0")/lib.sh"
places
show frazil run
show frazil history
