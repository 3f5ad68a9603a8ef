this_job=$SLURM_JOB_ID
chain=$SLURM_JOB_ID
first_life() { ((${SLURM_RESTART_COUNT:-0} == 0)); }
drop_successors() { :; }

go_on() {
  local restart=$((${SLURM_RESTART_COUNT:-0} + 1))
  if [[ -n $told_to_stop ]] && ((SECONDS + 30 < limit)); then
    say "Slurm ends this job before its time, and decides whether it is started again"
    exit 75
  fi
  if ((restart > most_restarts)); then
    say "all $most_restarts restarts are used up: submit again to go on"
    exit 75
  fi
  say "restart $restart of $most_restarts"
  if ! scontrol requeue "$SLURM_JOB_ID"; then
    say "Slurm does not requeue this job: submit again, with go_on: ARRAY where that is its rule"
    exit 75
  fi
  exit "$code"
}
