# Sourced by the scripts of this folder and by .ci/run: goes to the repository's root, gives help and errors.
# shellcheck shell=bash
set -euo pipefail
script=$0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# The comment at the head of the calling script is its help.
help() {
  sed -n '2,$ { /^#/! q; s/^# \{0,1\}//; p }' "$script"
  exit 0
}

die() {
  echo "$(basename "$script"): $*" >&2
  exit 1
}

# run_strictly COMMAND...: runs a function up to its first failing command, and sets `status`. Call it alone: wherever the
# status of a command is asked for, as in `if`, bash ignores `set -e`, and a function goes on after a failure.
run_strictly() {
  set +e
  (set -e; "$@")
  # shellcheck disable=SC2034 # the caller's
  status=$?
  set -e
}

# persist COMMAND...: what asks a package index or a mirror, up to three times. They stall now and then, and so does this
# machine, which ends their connections; and apt's lists have one writer at a time.
persist() {
  local tries=1
  until "$@"; do
    [[ $tries -lt 3 ]] || return 1
    echo "$(basename "$script"): $1 failed, again in 10 s" >&2
    tries=$((tries + 1))
    sleep 10
  done
}
export PIP_DEFAULT_TIMEOUT=60 PIP_RETRIES=5

# Runs a command with fixed addresses: g++ 12's and clang 14's sanitizers fail now and then on kernels that randomise
# more bits of an address than they expect. Plain where the personality may not be changed.
with_fixed_addresses() {
  if setarch --addr-no-randomize true 2>/dev/null; then
    setarch --addr-no-randomize "$@"
  else
    "$@"
  fi
}
