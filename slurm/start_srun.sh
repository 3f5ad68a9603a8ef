# By srun. Slurm itself gives them the signals: SIGUSR1 before the limit, SIGTERM at the end.
# PMIx's other store now and then lets a rank send before the receiver has left MPI_Init, which kills it:
# 6 of 770 starts of four ranks, none of 500 with this one (PMIx 4.2, Open MPI 4.1).
export PMIX_MCA_gds=${PMIX_MCA_gds:-hash}
start_ranks() {
  exec srun --mpi=pmix --nodes="$nodes" --ntasks="$ranks" --ntasks-per-node="$tasks_per_node" \
    ${chosen_nodes:+--nodelist="$chosen_nodes"} --kill-on-bad-exit=1 --wait=60 \
    "${starter_options[@]}" "${tessera[@]}" train "${train_options[@]}"
}
