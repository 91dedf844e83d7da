#!/bin/sh
# build-xcframework.sh [TARGET...]: builds the native library for iPhones and simulators, to ios/CNiwaki.xcframework.
#
# Needs Xcode, and once:
#   rustup target add aarch64-apple-ios aarch64-apple-ios-sim x86_64-apple-ios
#
# Where there is no Xcode, it makes the same folder with Debian's clang-22, llvm-22 and rust-web-src, to look at: nothing
# can be linked with it there. TARGET... makes fewer than the three targets.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- aarch64-apple-ios aarch64-apple-ios-sim x86_64-apple-ios
cargo_folder=$(bindings/target-folder.sh)
out=$cargo_folder/xcframework
framework=ios/CNiwaki.xcframework

ios/generate-bindings.sh
rm -rf "$out" "$framework"
headers=$out/headers
mkdir -p "$headers"
# In a folder of its own: the headers of all static frameworks of an app share one.
cp -r ios/Sources/CNiwaki "$headers/CNiwaki"

export IPHONEOS_DEPLOYMENT_TARGET=16.0
if command -v xcodebuild >/dev/null; then
  build() { cargo rustc "$@"; }
  lipo=lipo
else
  echo "there is no Xcode: what comes out is to look at" >&2
  lipo=llvm-lipo-22
  # In place of the SDKs: the few C headers that are included.
  for sdk in iPhoneOS iPhoneSimulator; do
    include=$out/$sdk.sdk/usr/include
    mkdir -p "$include"
    echo '#define assert(condition) ((void)0)' >"$include/assert.h"
    : >"$include/stdlib.h"
    cat >"$include/string.h" <<'C'
#include <stddef.h>
void *memcpy(void *restrict, const void *restrict, size_t);
void *memmove(void *, const void *, size_t);
void *memset(void *, int, size_t);
int memcmp(const void *, const void *, size_t);
C
  done
  build() {
    case $target in
      aarch64-apple-ios) sdk=iPhoneOS.sdk ;;
      *) sdk=iPhoneSimulator.sdk ;;
    esac
    variable=$(printf '%s' "$target" | tr '-' '_')
    # Rust's own library is built too.
    env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 SDKROOT="$out/$sdk" \
      "CC_$variable=clang-22" "AR_$variable=llvm-ar-22" /usr/bin/cargo rustc -Zbuild-std=std "$@"
  }
fi

for target in "$@"; do
  echo "building for $target"
  # The shared library that the crate can be as well would need a linker for it.
  build --quiet --profile dist --target-dir "$cargo_folder/apple" --target "$target" -p niwaki-bindings --crate-type staticlib
  case $target in
    aarch64-apple-ios) slice=phone ;;
    *) slice=simulator ;;
  esac
  mkdir -p "$out/$slice/architectures"
  cp "$cargo_folder/apple/$target/dist/libniwaki_bindings.a" "$out/$slice/architectures/$target.a"
done

# Both architectures of the simulator are one library.
set --
for slice in phone simulator; do
  [ -d "$out/$slice" ] || continue
  "$lipo" -create "$out/$slice"/architectures/*.a -output "$out/$slice/libniwaki_bindings.a"
  set -- "$@" "$out/$slice/libniwaki_bindings.a"
done

if command -v xcodebuild >/dev/null; then
  for library in "$@"; do
    set -- "$@" -library "$library" -headers "$headers"
    shift
  done
  xcodebuild -create-xcframework "$@" -output "$framework"
else
  python3 ios/create_xcframework.py "$framework" "$headers" "$@"
fi
