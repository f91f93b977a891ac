# Sourced by tests/run.sh and tools/quickstart.sh: runs the steps of a script, and times them.

stage_names=()
stage_seconds=()
stages_started=$SECONDS

# stage NAME COMMAND...: says what runs, runs it in this shell, and keeps the time. The command must not rely on
# `set -e` alone: a failing one ends the script with a message.
stage() {
  local name=$1 started=$SECONDS
  shift
  printf '== %s\n' "$name" >&2
  "$@" || stage_failed "$name" $?
  stage_took "$name" $((SECONDS - started))
}

stage_took() {
  stage_names+=("$1")
  stage_seconds+=("$2")
  printf '== %s: done in %s\n' "$1" "$(duration "$2")" >&2
}

stage_failed() {
  printf '== %s: FAILED (exit code %s)\n' "$1" "$2" >&2
  exit "$2"
}

duration() {
  if (($1 >= 3600)); then
    printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 / 60 % 60)) $(($1 % 60))
  else
    printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
  fi
}

print_stage_times() {
  local i
  printf '\n%-28s %s\n' "stage" "time (min:s)"
  for i in "${!stage_names[@]}"; do printf '%-28s %s\n' "${stage_names[i]}" "$(duration "${stage_seconds[i]}")"; done
  printf '%-28s %s\n\n' "all of these" "$(duration $((SECONDS - stages_started)))"
}
