#!/usr/bin/env bash
# From an empty machine to a trained, reinforced and scored grounded model:
#   bash tools/quickstart.sh [--recipe NAME] [--out DIR] [--open]
# Installs what is needed, builds, writes a phantom data set, trains, reinforces, evaluates and writes a report.
# Works from any folder. Run it again after an interruption or a change: stages whose result is there, and whose
# command, settings, program and inputs are the same, are kept.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/stages.sh"

recipe=quickstart
out=
open_report=false
while (($#)); do
  case $1 in
    --out) [[ $# -ge 2 ]] || { echo "quickstart: --out needs a folder" >&2; exit 2; }
      out=$2; shift 2 ;;
    --out=*) out=${1#--out=}; shift ;;
    --recipe) [[ $# -ge 2 && -d $root/configs/$2 ]] || { echo "quickstart: --recipe needs a folder of configs/" >&2; exit 2; }
      recipe=$2; shift 2 ;;
    --open) open_report=true; shift ;;
    -h | --help)
      echo "usage: bash tools/quickstart.sh [--recipe NAME] [--out DIR] [--open]"
      echo "  --recipe NAME  the settings in configs/NAME (default: quickstart; phantom: the longer recipe)"
      echo "  --out DIR      where data, runs and report go (default: runs/NAME in the repository)"
      echo "  --open         show the report in a browser at the end"
      exit 0 ;;
    *) echo "quickstart: unknown option '$1'; --help lists them" >&2; exit 2 ;;
  esac
done
out=${out:-$root/runs/$recipe}
mkdir -p "$out/logs" "$out/.stages"
out=$(cd "$out" && pwd)
cd "$root"

install_packages() { deps=$(THINKVG_TEST_WHEELS=0 bash third_party/install.sh); }
build() {
  cmake --preset release -DTHINKVG_DEPS="$deps" >"$out/logs/configure.log" &&
    cmake --build --preset release --target thinkvg thinkvg-pictures thinkvg-tensors
}
stage "install packages" install_packages
after_downloads=$SECONDS
stage "build" build
thinkvg=$root/build/release/tools/thinkvg

# result RESULT PROGRAM CONFIG COMMAND ARGUMENTS...: runs `thinkvg COMMAND ARGUMENTS`, by configs/RECIPE/CONFIG.yaml
# where there is one, to make $out/RESULT (a file or a folder), unless that was made already under the same conditions:
# these are the command, its config, the program, and the conditions of all stages before.
conditions=""
result() {
  local name=$1 program=$2 config=$root/configs/$recipe/$3.yaml command=$4
  shift 4
  local made=$out/$name log=$out/logs/$name.log mark=$out/.stages/$name seconds started=$SECONDS kept
  local arguments=("$command")
  if [[ -f $config ]]; then
    arguments+=(--config "$config")
  else
    config=/dev/null
  fi
  arguments+=("$@")
  conditions=$({
    printf '%s\n' "$conditions" "${arguments[@]//$out/OUT}"
    cat "$root/build/release/tools/$program" "$config"
  } | sha256sum | cut -c1-40)
  if [[ -e $made && -e $mark ]]; then
    read -r kept seconds <"$mark"
    if [[ $kept == "$conditions" ]]; then
      printf '== %s: kept (it took %s)\n' "$name" "$(duration "$seconds")" >&2
      stage_names+=("$name (kept)")
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

pictures=(--images "$out/data")
train=(--data "$out/data/data/train.parquet" "${pictures[@]}")
test=(--data "$out/data/data/test.parquet" "${pictures[@]}")
result data thinkvg-pictures phantom phantom --out "$out/data"
result init thinkvg-tensors init init --data "$out/data/data/train.parquet" --out "$out/init"
result warmup thinkvg-tensors warmup warmup --model "$out/init" --annotations "$out/data/annotations.jsonl" \
  "${pictures[@]}" --out "$out/warmup"
result sft thinkvg-tensors sft sft --model "$out/warmup" "${train[@]}" --out "$out/sft"
result grpo thinkvg-tensors grpo grpo --model "$out/sft" "${train[@]}" --out "$out/grpo"
result eval-untrained thinkvg-tensors eval eval --model "$out/warmup" "${test[@]}" --name untrained \
  --out "$out/eval-untrained"
result eval-blind thinkvg-tensors eval eval --model "$out/sft" "${test[@]}" --name "SFT, blind" --blind true \
  --out "$out/eval-blind"
result eval-sft thinkvg-tensors eval eval --model "$out/sft" "${test[@]}" --name SFT --out "$out/eval-sft"
result eval-grpo thinkvg-tensors eval eval --model "$out/grpo" "${test[@]}" --name "SFT + GRPO" --out "$out/eval-grpo"
result report.html thinkvg-pictures report report "$out/eval-untrained" "$out/eval-blind" "$out/eval-sft" \
  "$out/eval-grpo" "$out/sft" "$out/grpo" --out "$out/report.html"

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
