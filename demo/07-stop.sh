#!/usr/bin/env bash
# Stops the throwaway Postgres, if 01-start.sh made one, and removes the demo's files.
source "$(dirname "$0")/lib.sh"
if [[ -f $work/server ]]; then
  # shellcheck disable=SC1091
  source <(tr ' ' '\n' <"$work/server")
  as=()
  if [[ $(id -u) = 0 ]]; then as=(setpriv --reuid=postgres --regid=postgres --clear-groups); fi
  "${as[@]}" "$bin/pg_ctl" -D "$data/pg" -m fast stop >/dev/null
  rm -rf "$data"
fi
rm -rf "$work" .frazil
