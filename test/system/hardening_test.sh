#!/usr/bin/env bash
# Usage: hardening_test.sh FILE...
# Fails for a program or shared library that was not built as docs/security.md says: position independent, its
# relocations resolved at the start and then read-only, no executable stack, stack protector, checked string functions.
set -euo pipefail

failed=0
# expect FILE WHAT COMMAND...: the command succeeds.
expect() {
  local file=$1 what=$2
  shift 2
  "$@" >/dev/null || { echo "$file: $what"; failed=1; }
}

for file in "$@"; do
  header=$(readelf --wide --file-header "$file")
  segments=$(readelf --wide --program-headers "$file")
  dynamic=$(readelf --wide --dynamic "$file")
  symbols=$(readelf --wide --dyn-syms "$file")
  expect "$file" "is not position independent" grep -E 'Type: +DYN' <<<"$header"
  expect "$file" "has no read-only relocations" grep GNU_RELRO <<<"$segments"
  expect "$file" "resolves its relocations late" grep -E 'BIND_NOW|FLAGS_1.*NOW' <<<"$dynamic"
  expect "$file" "has an executable stack" grep -E 'GNU_STACK.* RW +0x' <<<"$segments"
  expect "$file" "has no stack protector" grep __stack_chk_fail <<<"$symbols"
  expect "$file" "has no checked string functions" grep -E '__[a-z]+_chk' <<<"$symbols"
  case $file in
    *.so*) ;;
    *) expect "$file" "is no position-independent program" grep -E 'FLAGS_1.*PIE' <<<"$dynamic" ;;
  esac
done
[[ $# -gt 0 && $failed == 0 ]]
