#!/bin/sh
# ndk-cargo.sh TARGET COMMAND ARGUMENT...: runs cargo for an Android target with the compilers of an NDK (ANDROID_NDK_HOME).
# CARGO names another cargo.
set -eu
: "${ANDROID_NDK_HOME:?should name the folder of an Android NDK}"
minimum_api=26   # minSdk in niwaki/build.gradle.kts
target=$1 command=$2
shift 2

# An NDK is for one system: there is one folder.
for compilers in "$ANDROID_NDK_HOME"/toolchains/llvm/prebuilt/*/bin; do break; done
clang=$compilers/$target$minimum_api-clang
[ -x "$clang" ] || { echo "there is no $clang: is ANDROID_NDK_HOME an NDK, r27 or later?" >&2; exit 1; }

lower=$(printf '%s' "$target" | tr '-' '_')
upper=$(printf '%s' "$lower" | tr '[:lower:]' '[:upper:]')
export "CC_$lower=$clang" "AR_$lower=$compilers/llvm-ar"
export "CARGO_TARGET_${upper}_LINKER=$(cd "$(dirname "$0")" && pwd)/link-native.sh"
export NDK_CLANG="$clang" NDK_COMPILERS="$compilers"
exec "${CARGO:-cargo}" "$command" --target "$target" "$@"
