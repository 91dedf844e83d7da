#!/bin/sh
# Compiles the Swift package, and the sample as far as that goes without Apple's own tools, and runs the tests on this
# Linux machine with its native library. Needs Rust and Swift 6.0 or later; without `swift`, on Debian or Ubuntu and as
# root, it installs one into cargo's target folder (2.4 GB).
set -eu
cd "$(dirname "$0")/.."
root=$PWD
target=$(bindings/target-folder.sh)
out=$target/ios
mkdir -p "$out"

if swift --version 2>&1 | grep -qE 'Swift version ([6-9]|[1-9][0-9])'; then
  with_swift() { "$@"; }
else
  ios/install-swift.sh "$target/swift"
  # A Debian of its own, with this folder, cargo's and the devices of the machine.
  with_swift() {
    unshare --mount sh -c '
      set -eu
      swift=$1 root=$2 target=$3
      shift 3
      mkdir -p "$swift$root" "$swift$target"
      mount -t proc proc "$swift/proc"
      mount --rbind /dev "$swift/dev"
      mount --bind "$root" "$swift$root"
      [ -d "$swift$target/ios" ] || mount --bind "$target" "$swift$target"
      exec chroot "$swift" env -C "$root" HOME=/root PATH=/usr/libexec/swift/bin:/usr/bin:/bin "$@"
    ' with_swift "$target/swift" "$root" "$target" "$@"
  }
fi

echo "generating bindings"
ios/generate-bindings.sh

echo "building the test models"
bindings/build-test-models.sh "$out"

[ "$(grep -c '^```swift$' README.md)" -eq 1 ] || { echo "README.md should have one block of Swift" >&2; exit 1; }
mkdir -p ios/Tests/Readme
sed -n '/^```swift$/,/^```$/p' README.md | sed '/^```/d' >ios/Tests/Readme/Readme.swift

echo "reading the sample's screens"
with_swift swiftc -frontend -parse -parse-as-library ios/sample/NiwakiSample/*.swift

echo "compiling the package, the sample's model, the Swift in README.md and the tests"
# Debian's libswiftObservation.so lacks a symbol that nothing calls.
package() {
  command=$1
  shift
  with_swift env NIWAKI_HOST_LIBRARY_FOLDER="$target/release" \
    NIWAKI_TEST_MODEL="$out/demo.niwaki" NIWAKI_TEST_CHAT_MODEL="$out/chat.niwaki" \
    swift "$command" --package-path ios --scratch-path "$out/build" -Xlinker --allow-shlib-undefined "$@"
}
package build --build-tests --quiet -Xswiftc -warnings-as-errors

echo "looking for public items without documentation"
rm -rf "$out/symbols"
mkdir "$out/symbols"
with_swift swift-symbolgraph-extract -module-name Niwaki -target "$(uname -m)-pc-linux-gnu" -minimum-access-level public \
  -skip-synthesized-members -I "$out/build/debug/Modules" -I ios/Sources/CNiwaki -output-dir "$out/symbols"
python3 - "$out/symbols/Niwaki.symbols.json" <<'PYTHON'
import json, sys
symbols = json.load(open(sys.argv[1]))["symbols"]
bare = [".".join(symbol["pathComponents"]) for symbol in symbols if "docComment" not in symbol]
sys.exit(f"no documentation: {', '.join(bare)}" if bare or not symbols else 0)
PYTHON

package test --skip-build --disable-swift-testing
