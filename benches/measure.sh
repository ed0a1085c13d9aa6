# What the scripts here share: `$work` is a directory for files, and each name has one best round.

declare -A best cpu mem

timed() { # NAME COMMAND…: keeps the round with the fewest seconds
  local name=$1 s u y m
  shift
  /usr/bin/time -o "$work/time" -f '%e %U %S %M' "$@" >/dev/null 2>"$work/stderr" ||
    { cat "$work/stderr" >&2; exit 1; }
  read -r s u y m <"$work/time"
  if [ -z "${best[$name]:-}" ] || awk "BEGIN { exit !($s < ${best[$name]}) }"; then
    best[$name]=$s cpu[$name]=$(awk "BEGIN { print $u + $y }") mem[$name]=$((m / 1024))
  fi
}

row() { # NAME LIMIT [COUNT]: seconds, COUNT a second, ratio to the limit, CPU seconds, MiB
  awk -v n="$1" -v s="${best[$1]}" -v l="${best[$2]}" -v k="${3:-}" -v c="${cpu[$1]}" -v m="${mem[$1]}" 'BEGIN {
    rate = k == "" ? "" : sprintf("%8.0f /s ", k / s); ratio = k == "" ? s / l : l / s
    printf "%-50s %8.2f s %s%7.2f x %7.2f CPU s %5d MiB\n", n, s, rate, ratio, c, m }'
}

higher() { # NAME NUMBER: keeps the highest
  [ -z "${best[$1]:-}" ] || awk "BEGIN { exit !($2 > ${best[$1]}) }" && best[$1]=$2 || true
}

lower() { # NAME NUMBER: keeps the lowest
  [ -z "${best[$1]:-}" ] || awk "BEGIN { exit !($2 < ${best[$1]}) }" && best[$1]=$2 || true
}
