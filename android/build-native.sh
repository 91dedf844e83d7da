#!/bin/sh
# build-native.sh FOLDER [ABI...]: builds the native library for the ABIs, or for every ABI that apps ship, to
# FOLDER/ABI/libniwaki_bindings.so.
#
# Needs an Android NDK (ANDROID_NDK_HOME), and once:
#   rustup target add aarch64-linux-android x86_64-linux-android
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- arm64-v8a x86_64
cd "$(dirname "$0")/.."
built=$(bindings/target-folder.sh)

for abi in "$@"; do
  case $abi in
    arm64-v8a) target=aarch64-linux-android ;;
    x86_64) target=x86_64-linux-android ;;
    *) echo "$abi is not an ABI that apps ship: arm64-v8a, x86_64" >&2; exit 1 ;;
  esac
  # One crate type: beside a Rust library nothing would be optimized at link time.
  android/ndk-cargo.sh "$target" rustc --profile dist -p niwaki-bindings --lib --crate-type cdylib
  mkdir -p "$folder/$abi"
  cp "$built/$target/dist/libniwaki_bindings.so" "$folder/$abi/"
done
