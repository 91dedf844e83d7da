#!/usr/bin/env bash
# stub_ndk.sh FOLDER: lays out as much of an Android NDK as building niwaki-bindings takes, where there is none: clang
# and lld of this machine, the few C headers that are included, and system libraries that export what
# bionic_symbols.txt lists and do nothing. What they build cannot run; what it needs and how large it is can be seen.
# Needs clang-22, lld-22 and llvm-22.
set -euo pipefail
mkdir -p "$1"
ndk=$(cd "$1" && pwd)
cd "$(dirname "$0")"
api=26   # as in android/ndk-cargo.sh
bin=$ndk/toolchains/llvm/prebuilt/linux-x86_64/bin
mkdir -p "$bin"
for tool in llvm-ar llvm-objcopy; do
  ln -sf "$(command -v "$tool-22")" "$bin/$tool"
done
rm -rf "$ndk/include"
cp -r headers "$ndk/include"

# definitions LIBRARY: assembly that defines what the list says is in it.
definitions() {
  awk -v library="$1" '$1 == library { printf ".globl %s\n.type %s, %%function\n%s:\n  .byte 0\n", $2, $2, $2 }' \
    bionic_symbols.txt
}

for target in aarch64-linux-android x86_64-linux-android; do
  lib=$ndk/lib/$target
  mkdir -p "$lib"
  for library in libc libm libdl liblog libunwind; do
    definitions "$library" | clang-22 --target="$target" -c -x assembler - -o "$lib/$library.o"
  done
  for library in libc libm libdl liblog; do
    ld.lld-22 -shared -soname "$library.so" -o "$lib/$library.so" "$lib/$library.o"
  done
  llvm-ar-22 rcs "$lib/libunwind.a" "$lib/libunwind.o"   # static, as the NDK's

  clang-22 --target="$target" -O2 -fPIC -c -x c - -o "$lib/crtbegin_so.o" <<'C'
extern void __cxa_finalize(void *);
__attribute__((visibility("hidden"))) void *__dso_handle = &__dso_handle;
__attribute__((destructor)) static void finalize(void) { __cxa_finalize(&__dso_handle); }
C

  cat >"$bin/$target$api-clang" <<SH
#!/usr/bin/env bash
clang=(clang-22 --target=$target$api -nostdlibinc -isystem "$ndk/include")
case " \$* " in
  *" -c "* | *" -E "*) exec "\${clang[@]}" "\$@" ;;
esac
exec "\${clang[@]}" -Wno-unused-command-line-argument -fuse-ld="$(command -v ld.lld-22)" -nostdlib -L"$lib" "$lib/crtbegin_so.o" "\$@" \\
  -Wl,-z,defs -Wl,--build-id=sha1
SH
  chmod +x "$bin/$target$api-clang"
done
