# Short names for the commands of this repository.

# List them.
default:
    @just --list

# Install what the tests need.
setup:
    scripts/setup-tests.sh

# Format, lints, all tests.
test:
    scripts/test.sh

# Format and lints only.
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings

# Measure; see benches/README.md.
bench *ARGS:
    cargo bench {{ARGS}}

# A shop, a lake and a warehouse on this machine, without any server.
demo:
    cargo run -- demo
