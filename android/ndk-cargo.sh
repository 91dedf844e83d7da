#!/usr/bin/env bash
# ndk-cargo.sh TARGET COMMAND ARGUMENT...: runs cargo for an Android target with the compilers of an NDK (ANDROID_NDK_HOME).
# CARGO names another cargo.
set -euo pipefail
: "${ANDROID_NDK_HOME:?should name the folder of an Android NDK}"
minimum_api=26   # minSdk in niwaki/build.gradle.kts
target=$1 command=$2
shift 2

compilers=("$ANDROID_NDK_HOME"/toolchains/llvm/prebuilt/*/bin)
clang=${compilers[0]}/$target$minimum_api-clang
[ -x "$clang" ] || { echo "there is no $clang: is ANDROID_NDK_HOME an NDK, r27 or later?" >&2; exit 1; }

name=${target//-/_}
export "CC_$name=$clang" "AR_$name=${compilers[0]}/llvm-ar"
export "CARGO_TARGET_${name^^}_LINKER=$(cd "$(dirname "$0")" && pwd)/link-native.sh"
export NDK_CLANG=$clang NDK_COMPILERS=${compilers[0]}
exec "${CARGO:-cargo}" "$command" --target "$target" "$@"
