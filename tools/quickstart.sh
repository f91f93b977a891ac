#!/usr/bin/env bash
# From an empty machine to a trained, reinforced and scored grounded model:
#   bash tools/quickstart.sh [--out DIR] [--open]
# Installs what is needed, builds, writes a phantom data set, trains, reinforces, evaluates and writes a report.
# Works from any folder. Run it again after an interruption or a change: stages whose result is there, and whose
# command, settings, program and inputs are the same, are kept.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/stages.sh"

out=$root/runs/quickstart
open_report=false
while (($#)); do
  case $1 in
    --out) [[ $# -ge 2 ]] || { echo "quickstart: --out needs a folder" >&2; exit 2; }
      out=$2; shift 2 ;;
    --out=*) out=${1#--out=}; shift ;;
    --open) open_report=true; shift ;;
    -h | --help)
      echo "usage: bash tools/quickstart.sh [--out DIR] [--open]"
      echo "  --out DIR  where data, runs and report go (default: runs/quickstart in the repository)"
      echo "  --open     show the report in a browser at the end"
      exit 0 ;;
    *) echo "quickstart: unknown option '$1'; --help lists them" >&2; exit 2 ;;
  esac
done
mkdir -p "$out/logs" "$out/.stages"
out=$(cd "$out" && pwd)
cd "$root"

install_packages() { deps=$(bash third_party/install.sh); }
build() {
  cmake --preset release -DTHINKVG_DEPS="$deps" >"$out/logs/configure.log" &&
    cmake --build --preset release --target thinkvg thinkvg-pictures thinkvg-tensors
}
stage "install packages" install_packages
after_downloads=$SECONDS
stage "build" build
thinkvg=$root/build/release/tools/thinkvg

# result NAME PROGRAM RESULT CONFIG -- ARGUMENTS...: runs `thinkvg ARGUMENTS`, which makes RESULT (a file or folder under
# $out), unless it did so already under the same conditions. A stage depends on all stages before it.
conditions=""
result() {
  local name=$1 program=$2 made=$out/$3 config=$4 log=$out/logs/$1.log mark=$out/.stages/$1 seconds started=$SECONDS
  shift 5
  local arguments=("$@")
  [[ -n $config ]] && arguments=("$1" --config "$config" "${@:2}")
  conditions=$({
    printf '%s\n' "$conditions" "${arguments[@]/#$out/OUT}"
    sha256sum <"$root/build/release/tools/$program"
    [[ -z $config ]] || cat "$config"
  } | sha256sum | cut -c1-40)
  if [[ -e $made && -e $mark ]]; then
    read -r kept_conditions seconds <"$mark"
    if [[ $kept_conditions == "$conditions" ]]; then
      printf '== %s: kept (it took %s)\n' "$name" "$(duration "$seconds")" >&2
      stage_names+=("$name, kept")
      stage_seconds+=(0)
      return
    fi
  fi
  printf '== %s: thinkvg %s\n' "$name" "${arguments[*]}" >&2
  rm -rf "$made" "$mark"
  if ! "$thinkvg" "${arguments[@]}" 2>&1 | tee "$log" >&2; then
    echo "The whole output of this stage is in $log" >&2
    stage_failed "$name" 1
  fi
  if [[ ! -e $made ]]; then
    echo "thinkvg ended without an error, but $made is not there; see $log" >&2
    stage_failed "$name" 1
  fi
  seconds=$((SECONDS - started))
  echo "$conditions $seconds" >"$mark"
  stage_took "$name" "$seconds"
}

configs=$root/configs/quickstart
data=$out/data
result phantom thinkvg-pictures data "$configs/phantom.yaml" -- phantom --out "$data"
result init thinkvg-tensors init "$configs/init.yaml" -- init --data "$data" --out "$out/init"
result warmup thinkvg-tensors warmup "$configs/warmup.yaml" -- warmup --model "$out/init" --out "$out/warmup"
result sft thinkvg-tensors sft "$configs/sft.yaml" -- sft --out "$out/sft"
result grpo thinkvg-tensors grpo "$configs/grpo.yaml" -- grpo --out "$out/grpo"
for run in init sft grpo; do
  result "eval-$run" thinkvg-tensors "eval-$run" "$configs/eval.yaml" -- eval --out "$out/eval-$run"
done
result report thinkvg-pictures report.html "" -- report "$out/eval-init" "$out/eval-sft" "$out/eval-grpo" \
  --out "$out/report.html"

print_stage_times
echo "after the downloads: $(duration $((SECONDS - after_downloads)))"
echo "report: $out/report.html"
if $open_report; then
  if command -v xdg-open >/dev/null; then
    xdg-open "$out/report.html" >/dev/null 2>&1 || echo "open it in a browser: no browser could be started here" >&2
  else
    echo "open it in a browser: this machine has no xdg-open" >&2
  fi
fi
