#!/usr/bin/env bash
# Usage: install_test.sh BUILD SOURCE
# Installs the build, moves the installed tree, builds program/ against it through find_package and through pkg-config,
# and runs both.
set -euo pipefail
build=$1 source=$2
program=$source/test/install/program
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() {
  echo "FAILED: $*"
  exit 1
}

cmake --install "$build" --prefix "$folder/first" >/dev/null
mv "$folder/first" "$folder/moved"
prefix=$folder/moved

if grep -rIlF -e "$source" -e "$folder/first" "$prefix"; then
  fail "these installed files name the source tree or the prefix"
fi
library=$(find "$prefix" -name libkvferry.so)
[[ -n "$library" ]] || fail "no libkvferry.so is installed"
soname=$(readelf --dynamic "$library" | sed -nE 's/.*SONAME.*\[(.*)\]/\1/p')
[[ "$soname" =~ ^libkvferry\.so\.[0-9]+(\.[0-9]+)?$ ]] || fail "the soname is \"$soname\""
[[ -e "$(dirname "$library")/$soname" ]] || fail "nothing is installed under the soname $soname"
if readelf --dynamic "$library" | grep -E 'RPATH|RUNPATH'; then
  fail "the library carries a run path"
fi
LD_LIBRARY_PATH=$(dirname "$library")
export LD_LIBRARY_PATH

echo "with find_package:"
cmake -G Ninja -S "$program" -B "$folder/cmake" -DCMAKE_PREFIX_PATH="$prefix" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
cmake --build "$folder/cmake" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
"$folder/cmake/program" || fail "the program built with find_package ended with $?"

echo "with pkg-config:"
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name kvferry.pc)")
export PKG_CONFIG_PATH
# Flags are words, to be split.
# shellcheck disable=SC2046
g++ "$program/main.cc" -o "$folder/program" $(pkg-config --cflags --libs kvferry)
"$folder/program" || fail "the program built with pkg-config ended with $?"
