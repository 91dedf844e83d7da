#!/bin/sh
# Builds the small programs that show the library and runs each on the demo model: they have to end well and say something.
set -eu
cd "$(dirname "$0")/.."
target=$(bindings/target-folder.sh)
out=$target/examples-models
bindings/build-test-models.sh "$out"
cargo build --quiet --release --workspace --examples

# says WORDS COMMAND...: runs the command, whose output has to hold the words.
says() {
  words=$1
  shift
  printf '%s\n' "$*" | sed "s#$target/##g"
  output=$("$@" </dev/null) || { echo "it failed" >&2; exit 1; }
  printf '%s\n' "$output" | grep -qF -- "$words" || { printf 'it does not say "%s":\n%s\n' "$words" "$output" >&2; exit 1; }
}

programs=$target/release/examples
says "perplexity" "$programs/score" "$out/demo.niwaki" tools/demo-model/texts/held-out.txt
says "ended: Some(Cancelled)" "$programs/stream" "$out/demo.niwaki" "Once upon a time"
says "answered by" "$programs/route" "$out/chat.niwaki" "Who lived in the forest?"

reply=$(printf 'Who lived in the forest?\nAnd then?\n' | "$programs/chat" "$out/chat.niwaki")
[ "$(printf '%s\n' "$reply" | grep -c .)" -ge 2 ] || { echo "chat gave no two replies" >&2; exit 1; }
echo "all examples run"
