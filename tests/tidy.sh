#!/usr/bin/env bash
# clang-tidy over all sources, within a time: tidy.sh BUILD DEPS SECONDS
# A file that passed is not looked at again until it, a header, or .clang-tidy changes. LibTorch's headers take clang
# half a minute a file, so the sources without them and the commands are looked at; TIDY_SCOPE=all takes the others and
# the tests, too. Fails where a finding was made, not where time ran out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=$1 deps=$2
out=$build/tidy
cache=${XDG_CACHE_HOME:-$HOME/.cache}/thinkvg/tidy
mkdir -p "$out" "$cache"
rm -rf "$out"/*.log "$out"/skipped.txt

# clang cannot read GCC's precompiled headers, so that it gets the commands of a build without them.
cmake -S . -B "$out/commands" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON \
  -DCCACHE=CCACHE-NOTFOUND -DTHINKVG_UNITY=OFF -DTHINKVG_CUDA=OFF -DTHINKVG_DEPS="$deps" >"$out/configure.txt"

# The oldest marks of what passed go first.
find "$cache" -type f -mtime +30 -delete
mapfile -t header_files < <(find include src tools tests/support -name '*.h' | sort)
headers=$({ clang-tidy --version; cat .clang-tidy "${header_files[@]}"; } | sha256sum)
export headers cache out
export deadline=$(($(date +%s) + $3))

check_one() {
  local file=$1
  local mark=$cache/$({ echo "$headers"; cat "$file"; } | sha256sum | cut -c1-40)
  local log=$out/${file//\//_}.log
  [[ -e $mark ]] && { touch "$mark"; return 0; }
  local left=$((deadline - $(date +%s))) code=0
  if ((left <= 0)); then
    echo "$file" >>"$out/skipped.txt"
    return 0
  fi
  timeout $((left + 30)) clang-tidy --quiet -p "$out/commands" --extra-arg=-fno-openmp --extra-arg=-Wno-unknown-warning-option \
    "$file" >"$log" 2>&1 || code=$?
  if ((code == 0)); then
    touch "$mark"
    rm -f "$log"
  elif ((code == 124)); then
    echo "$file" >>"$out/skipped.txt"
  else
    grep -v -e 'warnings generated' -e '^Suppressed' -e '^Use -header-filter' "$log" >&2
    return 1
  fi
}
export -f check_one

known=$(grep -o '"file": "[^"]*"' "$out/commands/compile_commands.json" | cut -d'"' -f4)
list() {
  local file
  for file in "$@"; do [[ -e $file ]] && grep -qxF "$PWD/$file" <<<"$known" && echo "$file"; done
  return 0
}
light=(core grounding image text data rewards eval)
heavy=(nn models generation dist train rl serve)
shopt -s nullglob
files=$(
  for area in "${light[@]}"; do list src/"$area"/*.cc src/"$area"/*/*.cc; done
  list tools/*.cc
  if [[ ${TIDY_SCOPE:-light} == all ]]; then
    for area in "${heavy[@]}"; do list src/"$area"/*.cc src/"$area"/*/*.cc; done
    for area in tools "${light[@]}" "${heavy[@]}"; do list tests/"$area"/*_test.cc; done
  fi
)
failed=0
xargs -r -P "$(nproc)" -I{} bash -c 'check_one {}' <<<"$files" || failed=1
num_files=$(wc -l <<<"$files")
num_skipped=$([[ -e $out/skipped.txt ]] && wc -l <"$out/skipped.txt" || echo 0)
echo "clang-tidy: $((num_files - num_skipped)) of $num_files files looked at, $num_skipped left out for lack of time" >&2
exit $failed
