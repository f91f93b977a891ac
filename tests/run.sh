#!/usr/bin/env bash
# Installs what is needed, builds everything, checks format and lint, and runs all tests.
# Works from any folder; a second run takes only as long as the tests. Options go to ctest: `tests/run.sh -L unit`.
#   BUILD_PRESET=release   a preset of CMakePresets.json (debug, asan, cuda)
#   TIDY_SCOPE=all         clang-tidy over the sources that use LibTorch and the tests, too (half an hour)
#   TIDY_SECONDS=240       how long clang-tidy may take; what it did not reach is counted and named in build/*/tidy
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source tools/stages.sh
preset=${BUILD_PRESET:-release}
build=build/$preset

check_format() {
  source_files '*.cc' '*.h' '*.cu' | xargs -0 -r clang-format --dry-run -Werror
}

source_files() {
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard -- "$@" | while IFS= read -r -d '' file; do
      if [[ -e $file ]]; then printf '%s\0' "$file"; fi
    done
  else
    local names=() pattern
    for pattern in "$@"; do names+=(-o -name "$pattern"); done
    find include src tests tools third_party \( "${names[@]:1}" \) -print0
  fi
}

install_packages() { deps=$(bash third_party/install.sh); }
configure() { cmake --preset "$preset" -DTHINKVG_DEPS="$deps"; }
build_all() { cmake --build --preset "$preset"; }

stage "install packages" install_packages
stage "format" check_format
stage "configure" configure
stage "build" build_all
stage "clang-tidy" bash tests/tidy.sh "$build" "$deps" "${TIDY_SECONDS:-240}"
print_stage_times

# Waiting threads must not spin: the tests share few cores.
export OMP_WAIT_POLICY=passive
exec ctest --preset "$preset" --no-tests=error -j "$(nproc)" "$@"
