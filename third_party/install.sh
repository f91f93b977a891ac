#!/usr/bin/env bash
# Installs what the build needs: the Debian packages of debian-packages.txt and the wheels of wheels.txt, and the
# wheels of test-wheels.txt, which only tests read (THINKVG_TEST_WHEELS=0 leaves those out).
# Running it again takes a second. Wheels go to $THINKVG_DEPS (default: ~/.cache/thinkvg/<hash of the list>).
# The last line printed is that folder.
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

key=$(sha256sum "$here/wheels.txt" | cut -c1-12)
deps=${THINKVG_DEPS:-${XDG_CACHE_HOME:-$HOME/.cache}/thinkvg/$key}
if [[ ! -e $deps/complete ]]; then
  echo "installing the wheels of third_party/wheels.txt into $deps" >&2
  mkdir -p "$deps"
  staging=$(mktemp -d "$deps/staging.XXXXXX")
  trap 'rm -rf "$staging"' EXIT
  python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-compile \
    --require-hashes --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
    --target "$staging" -r "$here/wheels.txt" >&2
  rm -rf "$deps/python"
  mv "$staging" "$deps/python"
  touch "$deps/complete"
fi

tests_key=$(sha256sum "$here/test-wheels.txt" | cut -c1-12)
if [[ ${THINKVG_TEST_WHEELS:-1} != 0 && ! -e $deps/complete-tests-$tests_key ]]; then
  echo "installing the wheels of third_party/test-wheels.txt into $deps" >&2
  staging=$(mktemp -d "$deps/staging.XXXXXX")
  trap 'rm -rf "$staging"' EXIT
  python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-compile \
    --require-hashes --only-binary=:all: --target "$staging" -r "$here/test-wheels.txt" >&2
  rm -rf "$deps/test-python"
  mv "$staging" "$deps/test-python"
  touch "$deps/complete-tests-$tests_key"
fi
echo "$deps"
