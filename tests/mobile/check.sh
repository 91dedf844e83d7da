#!/usr/bin/env bash
# check.sh: compiles what apps ship for Android and iOS as far as a Linux machine can. Type-checks every mobile target;
# builds the library of arm64 Android phones as android/build-native.sh does and looks at what came out: its size, what
# it asks of the system, what it exports, and that it can be mapped in pages of 16 KiB.
#
# With an NDK (ANDROID_NDK_HOME) its compilers and libraries are used, otherwise stubs of them. Needs Debian's rustc-web,
# cargo-web and rust-web-src, whose sources the standard library is built from; clang-22, lld-22 and llvm-22.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(bindings/target-folder.sh)/mobile
largest_bytes=6000000

export CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_UNSTABLE_BUILD_STD=std CARGO_TARGET_DIR=$out
export CARGO_UNSTABLE_WARNINGS=true CARGO_BUILD_WARNINGS=deny
if [ -z "${ANDROID_NDK_HOME:-}" ]; then
  export ANDROID_NDK_HOME=$out/ndk
  tests/mobile/stub_ndk.sh "$ANDROID_NDK_HOME"
fi

# One profile for all: they share what is compiled for this machine.
shipped=(--profile dist -p niwaki-kernels -p niwaki -p niwaki-http -p niwaki-openai -p niwaki-route -p niwaki-bindings)

echo "building for arm64 Android"
CARGO_PROFILE_DIST_STRIP=none android/build-native.sh "$out/android" arm64-v8a

# Nothing is optimized for a check, and Rust's own library does without backtraces.
export CARGO_PROFILE_DIST_OPT_LEVEL=0 CARGO_UNSTABLE_BUILD_STD_FEATURES=panic-unwind

echo "checking for x86_64 Android"
android/ndk-cargo.sh x86_64-linux-android check "${shipped[@]}"

echo "checking for iOS and its simulator"
mkdir -p "$out/empty.sdk"
flags="-nostdlibinc -isystem $PWD/tests/mobile/headers"
env SDKROOT="$out/empty.sdk" IPHONEOS_DEPLOYMENT_TARGET=16.0 \
  CC_aarch64_apple_ios=clang-22 AR_aarch64_apple_ios=llvm-ar-22 CFLAGS_aarch64_apple_ios="$flags" \
  CC_aarch64_apple_ios_sim=clang-22 AR_aarch64_apple_ios_sim=llvm-ar-22 CFLAGS_aarch64_apple_ios_sim="$flags" \
  "$CARGO" check --target aarch64-apple-ios --target aarch64-apple-ios-sim "${shipped[@]}"

echo "looking at the library"
library=$out/android/arm64-v8a/libniwaki_bindings.so
stripped=$out/android/libniwaki_bindings.stripped.so
llvm-strip-22 --strip-all "$library" -o "$stripped"
failed=
fail() {
  printf 'libniwaki_bindings.so: %s\n' "$*" >&2
  failed=yes
}

bytes=$(stat --format=%s "$stripped")
[ "$bytes" -le "$largest_bytes" ] ||
  fail "$bytes bytes stripped, more than $largest_bytes; tests/mobile/library_size.py $library says of what"

dynamic=$(llvm-readelf-22 --dynamic-table "$stripped")
grep -qF 'Library soname: [libniwaki_bindings.so]' <<<"$dynamic" || fail "has no SONAME"
needed=$(sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' <<<"$dynamic")
unknown=$(grep -vxE 'lib(c|dl|m|log)\.so' <<<"$needed" || true)
[ -z "$unknown" ] || fail "needs" $unknown

small=$(llvm-readelf-22 --program-headers --wide "$stripped" | awk '$1 == "LOAD" && $NF != "0x4000"')
[ -z "$small" ] || fail "is not aligned for pages of 16 KiB: $small"

# Undefined symbols: what the list says, weak only where it says so.
unknown=$(comm -23 \
  <(llvm-nm-22 --dynamic --undefined-only --format=just-symbols "$stripped" | sed 's/@.*//' | sort -u) \
  <(sed -n -E 's/^(lib(c|dl|m|log)|weak) //p' tests/mobile/bionic_symbols.txt | sort -u))
[ -z "$unknown" ] || fail "asks for what is not in tests/mobile/bionic_symbols.txt:" $unknown
unknown=$(comm -23 \
  <(llvm-nm-22 --dynamic --undefined-only "$stripped" | awk '$1 == "U" { print $2 }' | sed 's/@.*//' | sort -u) \
  <(sed -n -E 's/^lib(c|dl|m|log) //p' tests/mobile/bionic_symbols.txt | sort -u))
[ -z "$unknown" ] || fail "cannot be loaded without" $unknown

exported=$(llvm-nm-22 --dynamic --defined-only --format=just-symbols "$stripped")
unknown=$(grep -vE '^(uniffi_niwaki_bindings_|ffi_niwaki_bindings_|UNIFFI_META_)' <<<"$exported" || true)
[ -z "$unknown" ] || fail "exports more than UniFFI's interface:" $unknown
grep -q '^uniffi_niwaki_bindings_fn_' <<<"$exported" || fail "exports no function"

[ -z "$failed" ]
echo "libniwaki_bindings.so for arm64 Android: $bytes bytes stripped, $(wc -l <<<"$exported") symbols exported," \
  "needs" $needed
