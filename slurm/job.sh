#!/bin/bash
@directives@
#
# Made by `tessera submit`; docs/slurm.md explains it. How it ends:
#   0           the run is finished
#   2, 65, 66   configuration, data or checkpoint must be mended: another start would end alike
#   93          three lives in a row have made no checkpoint
#   other       it goes on in another life, or says why it cannot

@settings@

say() { echo "$(date +%T) job $this_job: $*"; }

# The step of the newest checkpoint; "unknown" when nothing can be told.
newest_step() {
  local step
  step=$("${tessera[@]}" checkpoint list --newest-step "$run_dir")
  [[ $step =~ ^[0-9]+$ ]] || step=unknown
  echo "$step"
}

# --- What lives leave to the next: how many of them in a row have made no checkpoint, the step of the
# newest one that was seen, and the exit code once all is said and done.
load_state() {
  barren=0 newest=none ended=''
  first_life || [[ ! -r $state ]] || read -r barren newest ended <"$state"
}

save_state() { echo "$barren $newest $ended" >"$state.new" && mv "$state.new" "$state"; }

# Takes note of a checkpoint that was not there before; false when there is none.
saw_new_checkpoint() {
  local step
  step=$(newest_step)
  [[ $step =~ ^[0-9]+$ && $step != "$newest" ]] || return 1 # nothing: a signal ended who was asked
  newest=$step barren=0
}

# Ends the job, and all that would follow it, with exit code $1.
finish() {
  ended=$1
  save_state
  drop_successors
  exit "$1"
}

# --- One life.
begin_life() {
  saw_new_checkpoint
  # A life that is cut off with its node cannot count itself, so each counts before it begins.
  ((barren += 1))
  save_state
  ((barren <= lives_without_progress)) || give_up
  say "$ranks ranks on $nodes nodes go on from step $newest"
}

# Judges what the ranks ended with. Returns when the run should go on.
end_life() {
  if ! saw_new_checkpoint && [[ -n $told_to_stop ]]; then
    ((barren -= 1)) # it was given no time
  fi
  say "the ranks ended with exit code $code; the newest checkpoint is of step $newest"
  # srun says 0, too, where ranks could not be started on a node that has just come back.
  if [[ $code == 0 && $newest =~ ^[0-9]+$ ]] && ((newest < steps)); then
    say "but the run has $steps steps: it is not finished"
    code=75
  fi
  case $code in
    0 | 2 | 65 | 66 | 93) finish "$code" ;;
  esac
  save_state
  ((barren < lives_without_progress)) || give_up
}

give_up() {
  say "$lives_without_progress lives in a row have made no checkpoint: something must be mended"
  finish 93
}

# Waits for the ranks, whose process is $ranks_process, whatever signals come; sets `code`.
await_ranks() {
  while wait "$ranks_process"; kill -0 "$ranks_process" 2>/dev/null; do :; done
  wait "$ranks_process"
  code=$?
}

# --- Signals. The shell outlives its ranks: they save, it judges.
told_to_stop='' ranks_process=''
trap 'told_to_stop=yes' TERM
trap : CONT

# --- How ranks are started.
@start@

# --- How the run goes on in another job.
@go_on@

state=$run_dir/slurm/$name-$chain.state
load_state
if [[ -n $ended ]]; then
  say "the run has ended with exit code $ended: nothing to do"
  exit "$ended"
fi

@lives@

go_on
