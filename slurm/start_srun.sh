# By srun. Slurm itself gives them the signals: SIGUSR1 before the limit, SIGTERM at the end.
start_ranks() {
  exec srun --mpi=pmix --nodes="$nodes" --ntasks="$ranks" --ntasks-per-node="$tasks_per_node" \
    ${chosen_nodes:+--nodelist="$chosen_nodes"} --kill-on-bad-exit=1 --wait=60 \
    "${starter_options[@]}" "${tessera[@]}" train "${train_options[@]}"
}
