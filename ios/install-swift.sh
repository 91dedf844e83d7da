#!/bin/sh
# install-swift.sh FOLDER: Debian's Swift with a Debian of its own around it, for machines without `swift` (2.4 GB).
# Needs root, mmdebstrap and Debian's archive keys; nothing of the machine itself is changed.
set -eu
folder=$1
[ ! -e "$folder/installed" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "install-swift.sh: needs root to install Swift; run it as root, or put swift 6.0 or later on PATH" >&2
  exit 1
fi
for package in mmdebstrap debian-archive-keyring; do
  if ! dpkg -s "$package" >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
  fi
done

# The mirror that this machine's own apt takes Debian from; Debian's own where the machine is another system.
mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' |
  sed -n 's/^Debian Debian //p' | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}
# So does the way there: proxies and the like.
set --
while IFS= read -r setting; do
  [ -z "$setting" ] || set -- "$@" "--aptopt=$setting"
done <<SETTINGS
$(apt-config dump | grep -E '^Acquire::(http|https)::[^ ]+ ".+";$' || true)
SETTINGS

rm -rf --one-file-system "$folder"
mkdir -p "$(dirname "$folder")"
mmdebstrap --quiet --mode=root --variant=apt --include=swiftlang,libc6-dev,libstdc++-14-dev "$@" \
  --aptopt='Acquire::Retries "3"' \
  trixie "$folder" "deb $mirror trixie main"
rm -rf "$folder/var/cache/apt" "$folder/var/lib/apt/lists"
touch "$folder/installed"
