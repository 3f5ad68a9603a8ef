# By mpirun, which hands SIGUSR1 on to them. After SIGTERM it would give them two seconds only, so
# that they are told to save by SIGUSR1 alone, which comes to this shell first.
trap '[[ -z $ranks_process ]] || kill -USR1 "$ranks_process" 2>/dev/null' USR1
start_ranks() {
  exec mpirun -q -np "$ranks" "${starter_options[@]}" "${tessera[@]}" train "${train_options[@]}"
}
