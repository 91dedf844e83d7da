#!/usr/bin/env bash
# build-native.sh FOLDER: builds the native library for every ABI that apps ship, to FOLDER/ABI/libniwaki_bindings.so.
#
# Needs an Android NDK (ANDROID_NDK_HOME), and once:
#   cargo install cargo-ndk
#   rustup target add aarch64-linux-android x86_64-linux-android
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

# 16 KiB pages: Android 15 and later.
export RUSTFLAGS="${RUSTFLAGS:-} -C link-arg=-Wl,-z,max-page-size=16384"
cargo ndk --target arm64-v8a --target x86_64 --platform 26 --output-dir "$folder" \
  build --profile dist -p niwaki-bindings
