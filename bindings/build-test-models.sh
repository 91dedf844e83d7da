#!/bin/sh
# build-test-models.sh FOLDER: builds what the Kotlin and Swift tests open, the demo model as FOLDER/demo.niwaki and the
# same with a chat template as FOLDER/chat.niwaki.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

export_folder=$folder/demo-export
rm -rf "$export_folder"
cp -r tools/demo-model/onnx "$export_folder"
cargo run --quiet --release -- build "$export_folder" -o "$folder/demo.niwaki" --weights int4 >/dev/null
cat >"$export_folder/chat_template.jinja" <<'JINJA'
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}
JINJA
cargo run --quiet --release -- build "$export_folder" -o "$folder/chat.niwaki" --weights int4 >/dev/null
