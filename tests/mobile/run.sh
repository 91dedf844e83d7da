#!/bin/sh
# run.sh: runs what check.sh only links. Builds the library for this machine as android/build-native.sh builds it for
# phones (the dist profile, without what tract would do at load time, equal functions folded) and runs the Kotlin tests
# with it. Needs what android/test.sh needs; clang-22, lld-22 and llvm-22.
set -eu
cd "$(dirname "$0")/../.."
out=$(bindings/target-folder.sh)/mobile/host
mkdir -p "$out"

target=$(rustc --version --verbose | sed -n 's/^host: //p')
name=$(printf '%s' "$target" | tr '[:lower:]-' '[:upper:]_')
printf '#!/bin/sh\nexec clang-22 -fuse-ld=lld-22 "$@"\n' >"$out/clang"
ln -sf "$(command -v llvm-objcopy-22)" "$out/llvm-objcopy"
chmod +x "$out/clang"

env "CARGO_TARGET_${name}_LINKER=$PWD/android/link-native.sh" NDK_CLANG="$out/clang" NDK_COMPILERS="$out" \
  "CARGO_TARGET_${name}_RUSTFLAGS=-C link-arg=-Wl,--icf=all" CARGO_TARGET_DIR="$out" \
  cargo rustc --profile dist --target "$target" -p niwaki-bindings --lib --crate-type cdylib

NIWAKI_LIBRARY_FOLDER=$out/$target/dist android/test.sh
