begin_life
start_ranks &
ranks_process=$!
await_ranks
end_life
