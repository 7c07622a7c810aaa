"""Kernels that an H100 launches for a step of all environments and for an update, counted without one.

    pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2    # the version of your jax
    python -m benchmark.kernels --env-id ant
    python -m benchmark.kernels --env-id reacher --algorithms crl ppo

XLA compiles for a GPU that is not there, from a description of it. In the program's text each fusion, library call,
copy or sort is a kernel, as often as the loops around it run; of a branch the longer side counts. The settings are
those of `python -m benchmark.peer speed`, and the peer's CRL is compiled by the same XLA. How to multiply two matrices
a GPU finds by trying; here XLA guesses, and a product can come out as one kernel or as two.
"""

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # there is no GPU to try on
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # nor a driver whose version could be wrong

import jax
from jax.experimental import topologies

from benchmark.peer import ITERATIONS, ROOT, SETTINGS, jaxpr_as_fun, make_args, peer_side, program_of_iteration, set_up

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  device_memory_size: 84942979072  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
FREE = {  # instructions that launch nothing
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"),
    *("partition-id", "replica-id", "async-done", "copy-done"),
}
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{\n((?:  .*\n)*)", re.M)
INSTRUCTION = re.compile(r"  (?:ROOT )?%\S+ = (?:\(.*?\)|\S+) ([\w-]+)\(")
CALLED = re.compile(r"(?:body|condition|to_apply|true_computation|false_computation)=%([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{(.*?)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def kernels_a_trip(text, trips):
    """Kernels of one trip of the loop that runs so often, in the HLO text of a compiled program."""
    computations = {name: body.splitlines() for name, body in COMPUTATION.findall(text)}

    def loop(line):
        return sum(count(name) for name in CALLED.findall(line))

    def count(name):
        total = 0
        for line in computations[name]:
            match = INSTRUCTION.match(line)
            if not match or match[1] in FREE:
                continue
            if match[1] == "while":
                total += int(TRIPS.search(line)[1]) * loop(line)
            elif match[1] == "conditional":
                branches = CALLED.findall(line) or re.findall(r"%([\w.-]+)", BRANCHES.search(line)[1])
                total += max(map(count, branches))
            elif match[1] == "call":
                total += loop(line)
            else:
                total += 1
        return total

    loops = (line for lines in computations.values() for line in lines if " while(" in line)
    return max(loop(line) for line in loops if int(TRIPS.search(line)[1]) == trips)


def print_row(name, iteration, shapes, unroll_length, updates, updates_a_trip=1):
    """Counts for an iteration, a function of arguments of these shapes, whose loops run so often."""
    gpu = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=H100).devices[0]
    here = jax.sharding.SingleDeviceSharding(gpu)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in shapes]
    text = jax.jit(iteration).lower(*shapes).compile().as_text()
    step, update = (kernels_a_trip(text, trips) for trips in (unroll_length, updates))
    print(f"| {name} | {step:,} | {update / updates_a_trip:,.0f} |", flush=True)


def ours(algorithm, env_id, num_envs, backend):
    module, args = make_args(algorithm, env_id, num_envs, backend, ITERATIONS, epochs=1)
    init, train = module.make_train(args)
    runner = jax.eval_shape(init, jax.random.key(0))
    program = program_of_iteration(lambda: train(runner, 1))
    schedule = module.make_schedule(args)
    updates_a_trip = args.policy_delay if algorithm == "td3" else 1
    updates = args.num_minibatches if algorithm == "ppo" else schedule.updates_per_iteration // updates_a_trip
    name = f"{SETTINGS[algorithm][0]}.py"
    print_row(name, jaxpr_as_fun(program), program.in_avals, schedule.unroll_length, updates, updates_a_trip)


def peers(env_id, num_envs):
    with tempfile.TemporaryDirectory() as folder:
        command = peer_side("kernels", "crl", "--env-id", env_id, "--num-envs", num_envs, "--folder", folder)
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        unroll_length, updates = map(int, Path(folder, "loops").read_text().split())
        program = jax.export.deserialize(bytearray(Path(folder, "program").read_bytes()))
    print_row("jaxgcrl, CRL", program.call, program.in_avals, unroll_length, updates)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="ant")
    parser.add_argument("--backend", default="spring", help="of ours: spring, mjx, generalized or positional")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--algorithms", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    given = parser.parse_args()
    print("| | a step of all environments | an update |\n| --- | --- | --- |")
    for algorithm in given.algorithms:
        ours(algorithm, given.env_id, given.num_envs, given.backend)
    if "crl" in given.algorithms:
        set_up()
        peers(given.env_id, given.num_envs)


if __name__ == "__main__":
    main()
