#!/usr/bin/env bash
# Everything that must hold before a change goes in: format, lints, all tests, documentation.
# Installs what the tests need. Up to 25 minutes from nothing on two cores, some 5 after that.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "${CI:-}" ]; then
    # A build folder beside the clone is still there for the next clone.
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/frazil/target}"
    export CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never
    profile=ci
else
    profile=default
fi

step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; "$@"; }

step scripts/setup-tests.sh
step cargo fmt --check
step cargo clippy --all-targets --quiet -- -D warnings
if cargo nextest --version >/dev/null 2>&1; then
    # The documentation's examples are not nextest's; they go first, so that its summary is the last word.
    step cargo test --doc --quiet
    step cargo nextest run --profile "$profile"
else
    # One test at a time would take too long, all at once would starve the servers.
    step cargo test --quiet -- --test-threads 4
fi
