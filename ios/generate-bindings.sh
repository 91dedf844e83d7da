#!/bin/sh
# Writes the Swift and C sides of ../bindings to Sources/NiwakiNative and Sources/CNiwaki, hidden from apps.
set -eu
cd "$(dirname "$0")/.."

# With the default members, so that tract is built once for all of them.
cargo build --quiet --release
# The static library keeps its symbols, by which bindgen finds the interface.
library=$(bindings/target-folder.sh)/release/libniwaki_bindings.a
generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
cargo run --quiet --release -p niwaki-uniffi-bindgen -- \
  generate "$library" --language swift --out-dir "$generated" --no-format --config bindings/bindgen.toml

# put FILE: keeps what has not changed, so that Swift compiles it once.
put() {
  mkdir -p "$(dirname "$1")"
  cat >"$generated/new"
  cmp -s "$generated/new" "$1" || cp "$generated/new" "$1"
}
# UniFFI makes everything public: the package is enough.
sed -E 's/^( *(required )?)(public|open) /\1package /' "$generated/NiwakiNative.swift" |
  put ios/Sources/NiwakiNative/NiwakiNative.swift
put ios/Sources/CNiwaki/CNiwaki.h <"$generated/CNiwaki.h"
put ios/Sources/CNiwaki/module.modulemap <<'MAP'
module CNiwaki {
    header "CNiwaki.h"
    export *
}
MAP
