#!/bin/sh
# Prints the folder that cargo builds this project in: CARGO_TARGET_DIR, what cargo's configuration says, or target.
set -eu
cd "$(dirname "$0")/.."
metadata=$("${CARGO:-cargo}" metadata --no-deps --format-version 1)
printf '%s\n' "$metadata" | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
