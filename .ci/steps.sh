# What .ci/run and .ci/slow share: running their steps, and what steps need. The script that reads this lists its steps in
# `steps` and has a function step_NAME for each.

# Every compilation is the first and the last here: what incremental ones keep would only cost time.
export CARGO_INCREMENTAL=0

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

announce() {
  printf '\n== [%02d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

# Installs those of these Debian packages that are missing.
packages() {
  local missing=()
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Installs a component of rustup's toolchain if it is missing.
component() {
  rustup component list --installed | grep -q "^$1" || rustup component add "$1"
}

# Runs the one line of README.md that begins with these words.
readme_command() {
  local found
  found=$(grep -E "^$1( |\$)" README.md) || { echo "README.md has no line '$1 ...'" >&2; return 1; }
  [ "$(printf '%s\n' "$found" | wc -l)" -eq 1 ] || { echo "README.md has several lines '$1 ...'" >&2; return 1; }
  announce "README: $found"
  bash -c "$found"
}

# Runs the steps that are named, or all of them.
run_steps() {
  if [ "${1:-}" = --list ]; then
    printf '%s\n' "${steps[@]}"
    return
  fi
  for name in "$@"; do
    printf '%s\n' "${steps[@]}" | grep -qxF -- "$name" ||
      { echo "there is no step '$name'; the steps are: ${steps[*]}" >&2; return 2; }
  done
  [ "$#" -gt 0 ] || set -- "${steps[@]}"
  for name in "$@"; do
    announce "$name"
    "step_$name"
  done
  announce "passed: $*"
}
