#!/bin/sh
# link-native.sh ARGUMENT...: the linker of ndk-cargo.sh. Links with the NDK's clang, and leaves out two things.
#
# What Rust code would do when the library is loaded, which is to enter every kernel, transformation and runtime of tract
# into registries (the inventory crate). Niwaki looks nothing up there, its operators are its own. Without the
# constructors nothing refers to what they register, and the linker leaves that out, too. Rust's own library has no
# constructors on Android.
#
# What would be exported besides UniFFI's interface: functions that blake3's Rust code has for its C code.
set -eu
for argument in "$@"; do
  case $argument in
    *.rcgu.o)
      "$NDK_COMPILERS/llvm-objcopy" --remove-section=.init_array \
        --wildcard --set-symbol-visibility='blake3_*=hidden' "$argument"
      ;;
  esac
done
exec "$NDK_CLANG" "$@"
