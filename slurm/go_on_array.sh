# Each task of the array is a life; %1 lets one run at a time.
this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
chain=$SLURM_ARRAY_JOB_ID
first_life() { ((SLURM_ARRAY_TASK_ID == SLURM_ARRAY_TASK_MIN)); }
drop_successors() { scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"; }

go_on() {
  if ((SLURM_ARRAY_TASK_ID < SLURM_ARRAY_TASK_MAX)); then
    say "task $((SLURM_ARRAY_TASK_ID + 1)) of $SLURM_ARRAY_TASK_MAX goes on where this one stopped"
  else
    say "this was the last task of the array: submit again to go on"
  fi
  exit 75
}
