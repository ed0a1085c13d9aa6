# What the steps share. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=$PWD/work

# Tells what is run, then runs it.
show() { printf '\n$ %s\n' "$*"; "$@"; }

frazil() {
  if [[ -n ${FRAZIL:-} ]]; then "$FRAZIL" "$@"; else cargo run --quiet -- "$@"; fi
}

psql_shop() { psql -X -q -v ON_ERROR_STOP=1 "$DEMO_SHOP_URL" "$@"; }

# The places that 01-start.sh wrote down.
places() {
  if [[ ! -f $work/places ]]; then echo "run demo/01-start.sh first" >&2; exit 1; fi
  # shellcheck disable=SC1091
  source "$work/places"
  export DEMO_SHOP_URL DEMO_WAREHOUSE_URL
}
