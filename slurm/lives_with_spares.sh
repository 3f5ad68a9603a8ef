# Lives within this allocation, on the nodes that answer. A node that has failed twice is not asked
# again; of the others those that never failed come first.
mapfile -t allocated < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
declare -A failures=()
for node in "${allocated[@]}"; do failures[$node]=0; done
lost=

# A step of one task on each node tells which of them answer. Sets `lost`, those that do not.
probe_nodes() {
  local node
  declare -A probes=()
  lost=
  for node in "${allocated[@]}"; do
    ((failures[$node] < 2)) || continue
    timeout "$seconds_to_answer" srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" --mpi=none \
      --quiet true 2>/dev/null &
    probes[$node]=$!
  done
  for node in "${!probes[@]}"; do
    wait "${probes[$node]}" && continue
    ((failures[$node] += 1))
    lost+=" $node"
  done
}

# Sets `chosen_nodes`, as many as train. False when too few are left.
choose_nodes() {
  local node sound=() doubtful=()
  for node in "${allocated[@]}"; do
    [[ " $lost " == *" $node "* ]] && continue
    ((failures[$node] == 0)) && sound+=("$node")
    ((failures[$node] == 1)) && doubtful+=("$node")
  done
  sound+=("${doubtful[@]}")
  ((${#sound[@]} >= nodes)) || return 1
  chosen_nodes=$(IFS=,; echo "${sound[*]:0:nodes}")
}

time_is_up() { ((SECONDS + warning >= limit)); }

pause=1 # seconds
choose_nodes
while true; do
  begin_life
  start_ranks &
  ranks_process=$!
  await_ranks
  end_life
  if [[ -n $told_to_stop ]] || time_is_up; then break; fi
  probe_nodes
  say "nodes that do not answer:${lost:- none}"
  # With all nodes there, 75 is the answer to a SIGUSR1, from whomever.
  if [[ -n $told_to_stop || ($code == 75 && -z $lost) ]]; then break; fi
  if ! choose_nodes; then
    say "fewer than $nodes nodes are left"
    break
  fi
  ((pause = barren == 0 ? 1 : pause < 30 ? 2 * pause : 60))
  sleep "$pause"
done
