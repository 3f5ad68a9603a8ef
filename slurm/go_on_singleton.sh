# `tessera submit` queues jobs of one name, of which Slurm runs one at a time. Arguments: which of how
# many this is, and the number of the first one.
this_job=$SLURM_JOB_ID
life=${1:-1} lives=${2:-1} chain=${3:-$SLURM_JOB_ID}
first_life() { ((life == 1)); }
drop_successors() { scancel --state=PENDING --user="$(id -un)" --name="$SLURM_JOB_NAME"; }

go_on() {
  if ((life < lives)); then
    say "job $((life + 1)) of $lives goes on where this one stopped"
  else
    say "this was the last of $lives jobs: submit again to go on"
  fi
  exit 75
}
