#!/usr/bin/env bash
# All learning curves of the README, one training after the other, as benchmark/results/*.csv and docs/results.png.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {  # task, method, seeds, script and its flags
    local csv="benchmark/results/$1__$2.csv" seeds="$3" script="$4"
    .venv/bin/python benchmark/seeds.py "$script" --seeds $seeds --csv "$csv" -- --env-id "$1" "${@:5}"
}

pusher="--noise-correlation 0.95 --episode-length 200 --gamma 0.98 --layer-norm --target-entropy 0 --total-timesteps 4000000"
run reacher crl "1 2 3 4 5" crl_jax.py
run reacher sac_her "1 2 3 4 5" sac_her_jax.py --total-timesteps 400000
run reacher ppo_sparse "1 2 3 4 5" ppo_jax.py --total-timesteps 2000000
run arm_reach crl "1 2 3" crl_jax.py --total-timesteps 300000
run cheetah crl "1 2 3" crl_jax.py --total-timesteps 1000000
run simple_u_maze crl "1 2 3" crl_jax.py --total-timesteps 2000000
run ant crl "1 2 3" crl_jax.py --random-goals 0.5 --target-entropy -3 --total-timesteps 6000000
run pusher_easy sac_her "1 2 3 4 5" sac_her_jax.py $pusher
run pusher_easy sac "1 2 3 4 5" sac_her_jax.py $pusher --her-ratio 0
.venv/bin/python benchmark/plot.py benchmark/results/*.csv --picture docs/results.png
