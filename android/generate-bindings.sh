#!/bin/sh
# generate-bindings.sh FOLDER: writes the Kotlin side of ../bindings to FOLDER/io/niwaki/ffi, hidden from apps.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

# With the default members, so that tract is built once for all of them.
cargo build --quiet --release
# The static library keeps its symbols, by which bindgen finds the interface.
library=$(bindings/target-folder.sh)/release/libniwaki_bindings.a
cargo run --quiet --release -p niwaki-uniffi-bindgen -- \
  generate "$library" --language kotlin --out-dir "$folder" --no-format --config bindings/bindgen.toml

# UniFFI makes everything public. The compiler's explicit API mode fails on whatever this would miss.
sed -i.public -E '
  s/^public //
  s/^((abstract |open |sealed |data |enum |inline |fun )*(class|interface|object|fun|typealias|val|var)[ <])/internal \1/
  s/^ {4}(@Throws\([^)]*\)) fun `/\1 internal fun `/
' "$folder/io/niwaki/ffi/niwaki_bindings.kt"
rm "$folder/io/niwaki/ffi/niwaki_bindings.kt.public"
