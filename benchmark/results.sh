#!/usr/bin/env bash
# All learning curves of docs/results.md, one training after the other on one core, as benchmark/results/*.csv, and
# their tables and pictures. Seeds that these files have already are not run again: delete a file to train anew. The
# curves `jaxgcrl` are the peer's, whose environment is made if it is missing. CORE=1 takes core 1.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {  # task, method, seeds, script and its flags
    local csv="benchmark/results/$1__$2.csv" seeds="$3" script="$4"
    taskset -c "${CORE:-0}" .venv/bin/python benchmark/seeds.py "$script" --seeds $seeds --csv "$csv" -- \
        --env-id "$1" "${@:5}"
}

peer() {  # task, seeds, flags
    PYTHONPATH=benchmark .venv/bin/python -c "import peer; peer.set_up()"
    WANDB_MODE=disabled taskset -c "${CORE:-0}" .venv-peer/bin/python benchmark/seeds.py benchmark/peer_curve.py \
        --seeds $2 --csv "benchmark/results/$1__jaxgcrl.csv" -- --env-id "$1" "${@:3}"
}

brief="--num-evals 10 --num-eval-envs 64"
long="--num-eval-envs 64 --checkpoint-every 4"
hard="--random-goals 0.5 --target-entropy -1 --anneal-lr"
pusher="--noise-correlation 0.95 --episode-length 200 --gamma 0.98 --layer-norm --target-entropy 0 --total-timesteps"
run reacher crl "1 2 3 4 5" crl_jax.py
run reacher sac_her "1 2 3 4 5" sac_her_jax.py --total-timesteps 400000
run reacher ppo_dense "1 2 3 4 5" ppo_jax.py --dense-reward --total-timesteps 2000000
run reacher ppo_sparse "1 2 3 4 5" ppo_jax.py --total-timesteps 2000000
run reacher sac "1 2 3 4 5" sac_her_jax.py --her-ratio 0 --total-timesteps 400000
run arm_reach crl "1 2 3 4 5" crl_jax.py --total-timesteps 300000 --num-evals 10 --num-eval-envs 32
run arm_reach sac_her "1 2 3 4 5" sac_her_jax.py --total-timesteps 300000 --num-evals 10 --num-eval-envs 32
run arm_reach sac "1 2 3 4 5" sac_her_jax.py --her-ratio 0 --total-timesteps 300000 --num-evals 10 --num-eval-envs 32
run arm_reach ppo_dense "1 2 3 4 5" ppo_jax.py --dense-reward --total-timesteps 2000000 $brief
run cheetah crl "1 2 3 4 5" crl_jax.py --num-envs 64 --anneal-lr --total-timesteps 1000000 $brief
run cheetah sac_her "1 2 3 4 5" sac_her_jax.py --num-envs 64 --gamma 0.99 --total-timesteps 1000000 $brief
run cheetah sac "1 2 3 4 5" sac_her_jax.py --num-envs 64 --her-ratio 0 --gamma 0.99 --total-timesteps 1000000 $brief
run cheetah ppo_dense "1 2 3 4 5" ppo_jax.py --dense-reward --total-timesteps 2000000 $brief
run simple_u_maze crl "1 2 3 4 5" crl_jax.py --num-envs 64 $brief
run simple_u_maze sac_her "1 2 3 4 5" sac_her_jax.py --num-envs 64 --gamma 0.99 $brief
run simple_u_maze sac "1 2 3 4 5" sac_her_jax.py --num-envs 64 --her-ratio 0 --gamma 0.99 $brief
run simple_u_maze ppo_dense "1 2 3 4 5" ppo_jax.py --dense-reward --total-timesteps 2000000 $brief
run simple_big_maze crl "1 2 3 4 5" crl_jax.py --num-envs 64 --random-goals 0.5 --gamma 0.97 --total-timesteps 2000000 $brief
run simple_big_maze sac_her "1 2 3 4 5" sac_her_jax.py --num-envs 64 --gamma 0.99 --total-timesteps 2000000 $brief
run simple_big_maze sac "1 2 3 4 5" sac_her_jax.py --num-envs 64 --her-ratio 0 --gamma 0.99 --total-timesteps 2000000 $brief
run simple_big_maze ppo_dense "1 2 3 4 5" ppo_jax.py --dense-reward --total-timesteps 2000000 $brief
run ant crl "1 2 3" crl_jax.py $hard --total-timesteps 14000000 $long
run ant sac_her "1 2 3" sac_her_jax.py --target-entropy -1 --gamma 0.99 --total-timesteps 7000000 $long
run ant sac "1 2 3" sac_her_jax.py --her-ratio 0 --target-entropy -1 --gamma 0.99 --total-timesteps 7000000 $long
run ant ppo_dense "1 2 3" ppo_jax.py --dense-reward --total-timesteps 14000000 --num-eval-envs 64
run ant_u_maze crl "1 2 3" crl_jax.py $hard --total-timesteps 7000000 $long
run ant_u_maze sac_her "1 2 3" sac_her_jax.py --target-entropy -1 --gamma 0.99 --total-timesteps 3500000 $long
run ant_u_maze sac "1 2 3" sac_her_jax.py --her-ratio 0 --target-entropy -1 --gamma 0.99 --total-timesteps 3500000 $long
run ant_u_maze ppo_dense "1 2 3" ppo_jax.py --dense-reward --total-timesteps 7000000 --num-eval-envs 64
run arm_push_easy crl "1 2 3" crl_jax.py $hard --total-timesteps 4000000 $long
run arm_push_easy sac_her "1 2 3" sac_her_jax.py --target-entropy -1 --total-timesteps 3000000 $long
run arm_push_easy sac "1 2 3" sac_her_jax.py --her-ratio 0 --target-entropy -1 --total-timesteps 3000000 $long
run arm_push_easy ppo_dense "1 2 3" ppo_jax.py --dense-reward --total-timesteps 2000000 $brief
run pusher_easy crl "1 2 3" crl_jax.py --random-goals 0.5 $pusher 8000000
run pusher_easy sac_her "1 2 3 4 5" sac_her_jax.py $pusher 4000000 --eval-noise 0
run pusher_easy sac "1 2 3 4" sac_her_jax.py $pusher 4000000 --her-ratio 0 --eval-noise 0
run pusher_easy ppo_dense "1 2 3 4 5" ppo_jax.py --dense-reward --episode-length 200 --total-timesteps 4000000 --num-eval-envs 64
run pusher_hard crl "1 2 3" crl_jax.py --random-goals 0.5 $pusher 8000000
run pusher_hard sac_her "1 2 3" sac_her_jax.py $pusher 4000000
run pusher_hard sac "1 2 3" sac_her_jax.py $pusher 4000000 --her-ratio 0
run pusher_hard ppo_dense "1 2 3 4 5" ppo_jax.py --dense-reward --episode-length 200 --total-timesteps 4000000 --num-eval-envs 64
peer reacher "1 2 3" --num-evals 7 --total-timesteps 600000
peer ant "1" --num-evals 8 --total-timesteps 2400000
near="--near reacher arm_reach"
.venv/bin/python benchmark/plot.py benchmark/results/{reacher,cheetah,pusher_easy,ant}__*.csv $near --picture docs/results.png
.venv/bin/python benchmark/plot.py benchmark/results/*.csv $near --picture docs/curves.png
