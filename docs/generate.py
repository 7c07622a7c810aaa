"""Writes docs/flags-and-metrics.md: python -m docs.generate"""

import dataclasses
import inspect
import re
import typing
from pathlib import Path

import crl_jax
import harness
import ppo_jax
import sac_her_jax
import td3_her_jax
from harness.cli import as_typed

PAGE = Path(__file__).with_name("flags-and-metrics.md")
SCRIPTS = {"CRL": crl_jax, "SAC": sac_her_jax, "TD3": td3_her_jax, "PPO": ppo_jax}
_SECTION, _FIELD = re.compile(r"    # (.+)"), re.compile(r"    (\w+): .+  # (.+)")

# What a script logs: the scripts that do, "" for all, and what it means.
METRICS = {
    "eval/success_rate": ("", "share of episodes that came within the goal's threshold at least once"),
    "eval/time_near_goal": ("", "share of an episode's full length within the threshold, mean"),
    "eval/final_dist": ("", "distance to the goal at the end of an episode, mean"),
    "eval/episode_return": ("", "sum of an episode's rewards, mean; CRL never sees them"),
    "train/success_rate": (
        "",
        "as `eval/success_rate`, of training's own episodes that ended in this epoch, for the goals they began with",
    ),
    "train/episode_length": ("", "their steps, mean"),
    "train/episode_return": ("", "their sum of rewards, mean"),
    "train/episodes": ("", "how many they are; where none has ended, the three above are 0"),
    "train/unstable_resets": ("", "episodes so far that ended because the physics gave NaN or infinity"),
    "losses/critic": ("", "the loss of φ and ψ, Q or V that the script's docstring writes out"),
    "losses/actor": ("", "the loss of π"),
    "losses/alpha": ("CRL SAC", "α, the weight of the entropy"),
    "losses/alpha_loss": ("CRL SAC", "its loss, α · (entropy - target)"),
    "losses/entropy": ("CRL SAC PPO", "-mean(log π(a \\| s, g)), nats"),
    "losses/param_norm": ("", "Euclidean norm of all parameters; one that grows without end warns early"),
    "losses/categorical_accuracy": ("CRL", "share of rows i whose largest logit is logits[i, i]"),
    "losses/logits_pos": ("CRL", "mean of logits[i, i]"),
    "losses/logits_neg": ("CRL", "mean of logits[i, j] with i ≠ j"),
    "losses/logsumexp": ("CRL", "mean over i of log Σ_j exp(logits[i, j])"),
    "losses/q": ("SAC TD3", "mean of both critics' values in a batch"),
    "losses/reward": ("SAC TD3", "mean reward in a batch, after relabelling"),
    "losses/value": ("PPO", "mean of V(s, g)"),
    "losses/approx_kl": ("PPO", "mean(ratio - 1 - log ratio): how far the policy moved from that of the rollout"),
    "losses/clip_fraction": ("PPO", "share of ratios farther from 1 than ε"),
    "charts/SPS": ("", "steps a second of wall-clock, all seeds together, evaluation and checkpoints included"),
    "charts/updates_per_second": ("", "updates a second, likewise"),
}

HEAD = """# Flags and metrics

Written by `python -m docs.generate`.

Each flag is a field of a script's `Args`. `--residual` turns one on, `--no-residual` turns it off. Steps are single
environment steps, also with action chunks.
"""

OF_TASKS = """On the command line CRL has other defaults for some kinds of tasks. Where two patterns fit an id, both
count, and the later wins. A run prints what it takes. A flag that you type wins."""

RUN = """## A run's directory

| | |
| --- | --- |
| `args.json` | its flags |
| `metrics.csv` | a row for each epoch: epoch, steps, seconds since the start, all metrics |
| `events.out.tfevents…` | the same for TensorBoard, over environment steps; flags; the film |
| `checkpoints/epoch_000005/` | all that a training is: parameters, optimisers, environments, buffer, keys; its policy |
| `policy.jax` | the newest policy by itself, see [forking](forking.md#a-policy-elsewhere) |
| `film.gif` | with `--capture-video` |
| `seed_1/`, … | with `--num-seeds`: the curves and the policy of each; the run's own curves are their means |

## Metrics

Evaluation has random numbers of its own: how often one evaluates changes only where a training ends, by less than an
epoch. Its noise is independent from step to step, also where training uses `--noise-correlation`. Losses are those of
the last batch of each iteration, in PPO of all its minibatches, mean over an epoch.

| tag | logged by | meaning |
| --- | --- | --- |
"""


def flags_of(flags_class):
    """The fields that a dataclass itself defines, in the order of its source: {section: {name: (default, comment)}}."""
    defaults, types = {x.name: x.default for x in dataclasses.fields(flags_class)}, typing.get_type_hints(flags_class)
    sections, fields = {}, {}
    for line in inspect.getsource(flags_class).splitlines():
        if field := _FIELD.fullmatch(line):
            name, comment = field.groups()
            if typing.get_origin(types[name]) is typing.Literal:
                comment += f": {', '.join(typing.get_args(types[name]))}"
            fields[name] = defaults[name], comment
        elif title := _SECTION.fullmatch(line):
            fields = sections.setdefault(title[1], {})
    return sections


def show(default):
    if isinstance(default, bool):
        return "on" if default else "off"
    return {"": '""'}.get(default, f"{default:,}" if isinstance(default, int) else str(default))


def table(flags):
    """Lines of a table of {script: {name: (default, comment)}}: a row for each name and comment, names together."""
    names = dict.fromkeys(name for fields in flags.values() for name in fields)
    yield f"| flag | {' | '.join(flags)} | |"
    yield "| --- |" + " --- |" * (len(flags) + 1)
    for name in names:
        defaults = {}
        for script, fields in flags.items():
            if name in fields:
                default, comment = fields[name]
                defaults.setdefault(comment, {})[script] = show(default)
        for comment, of_scripts in defaults.items():
            cells = [of_scripts.get(script, "") for script in flags]
            yield f"| `--{name.replace('_', '-')}` | {' | '.join(cells)} | {comment} |"


def page():
    """The page's text."""
    of_scripts = {script: flags_of(module.Args) for script, module in SCRIPTS.items()}
    tables = {title: {script: x[title] for script, x in of_scripts.items()} for title in of_scripts["CRL"]}
    tables |= {title: {"default": fields} for title, fields in flags_of(harness.RunArgs).items()}
    lines = [HEAD]
    for title, flags in tables.items():
        lines += [f"## {title[0].upper()}{title[1:]}", "", *table(flags), ""]
    lines += ["## What `--env-id` chooses", "", OF_TASKS, "", "| CRL's tasks | flags |", "| --- | --- |"]
    for task, chosen in crl_jax.OF_TASKS.items():
        lines.append(f"| `{task}` | `{as_typed(chosen)}` |")
    lines += ["", RUN.rstrip()]
    lines += [
        f"| `{tag}` | {scripts.replace(' ', ', ') or 'all'} | {meaning} |"
        for tag, (scripts, meaning) in METRICS.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
