"""What a GPU is asked: stages of commands, in the order of value.

Command lines have places in braces, which `REAL` fills for a GPU, and `DRY` for a CPU
that only tries them. `gpu_visit.py` runs them.
"""

import itertools
import shlex
from typing import Any, NamedTuple

from benchmarks.rows import today


class Step(NamedTuple):
    """One command.

    Attributes:
        name: Of the step in its stage, and of the run that it leaves.
        command: A script, or `-m` and a module, and its flags.
        alone: Whether nothing may run beside it, as its times are kept.
        leaves_run: Whether it is a training with a run folder of its name.
        recipe: Name on record of the recipe that it has trained; "" for none.
        same_as: Step of the stage that must have left the same weights; "" for none.
        is_stopped: Whether it gets SIGTERM within an epoch, and goes on after that.
    """

    name: str
    command: list[str]
    alone: bool = True
    leaves_run: bool = False
    recipe: str = ""
    same_as: str = ""
    is_stopped: bool = False


class Stage(NamedTuple):
    """Some steps, and what they fill."""

    fills: str
    steps: list[Step]


class Grid(NamedTuple):
    """A sweep: a process for each point of `split`, which trains all of `sweep`."""

    split: dict[str, list[Any]]
    sweep: dict[str, list[Any]]
    seeds: str


REAL: dict[str, Any] = {
    "accelerator": "gpu",
    "device": "cuda",
    "small": "",
    "short": "--max_epochs 3 --report false",
    "every": 20,  # steps between checkpoints of the run that is stopped
    "half": "16-mixed",
    "tests": "-m gpu",
    "paced": "",
    "against": "[loop,course,limit]",
    "graph": "true",
    "scaled": "--repeats 1",
    "batches": [512, 256],
    "seeds": 5,
    "repeats": 10,
    "reach": 0.94,
    "fast": Grid(
        {"batch_size": [256, 512], "max_epochs": [12, 16, 20]},
        {
            "lr": [0.0035, 0.006],
            "label_smoothing": [0.1, 0.2],
            "weight_decay": [0.2, 0.4],
        },
        "--seeds 3 --best 2",
    ),
    "accurate": Grid(
        {"batch_size": [128, 256], "cutout": [8, 12]},
        {"lr": [0.0025, 0.0045], "weight_decay": [0.3, 0.5]},
        "--seeds 3 --best 2",
    ),
    "rates": Grid(
        {
            "batch_size": [128, 512],
            "lr": [0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, "auto"],
        },
        {"max_epochs": [24]},
        "--seeds 3",
    ),
}
# What a CPU trains in seconds.
SMALL: dict[str, Any] = {
    "accelerator": "cpu",
    "precision": "32-true",
    "data": "synthetic",
    "base_width": 4,
    "max_epochs": 1,
    "batch_size": 32,
    "limit_train_batches": 40,
    "lr_steps": 40,
}
DRY: dict[str, Any] = {
    "accelerator": "cpu",
    "device": "cpu",
    "small": " ".join(f"--{flag} {value}" for flag, value in SMALL.items()),
    "short": "--max_epochs 2 --report false",
    "every": 5,
    "half": "bf16-mixed",  # a CPU has not got the other
    "tests": "-m gpu --collect-only",
    "paced": "--precision 32-true --base_width 4 --steps 2 --repeats 1",
    "against": "[loop,course]",  # the other takes a CPU minutes
    "graph": "false",
    "scaled": "--repeats 1 --epochs [1] --images [100,200] --batch_sizes [8] "
    "--processes [1] --images_per_epoch 16",
    "batches": [16],
    "seeds": 2,
    "repeats": 1,
    "reach": 0.01,
    "fast": Grid({"batch_size": [16], "max_epochs": [1, 2]}, {}, "--seeds 2 --best 1"),
    "accurate": Grid({"cutout": [8]}, {"lr": [0.01, 0.02]}, "--seeds 2 --best 1"),
    "rates": Grid({"lr": [0.01, "auto"]}, {}, "--seeds 1"),
}

# Where things are: folders, recipes, and flags that say where the images are.
PLACES = (
    *("data", "data_of_recipes", "records", "runs", "airbench"),
    *("best", "seed", "default"),
)

TRAIN = "train.py --accelerator {accelerator} {data} {small} --output_dir {runs}"
MEASURE = "benchmarks/measure.py {data_of_recipes}"
PACE = "benchmarks/pace.py --device {device} --batch_size {batch} {paced}"
THROUGHPUT = "--output {records}/{today}_throughput_{device}.csv"
PROFILE = "--profile {records}/{today}_profile_{device}_{batch}.md"
AIRBENCH = "benchmarks/studies/airbench.py {data} --repeats {repeats} "
AIRBENCH += (
    "--accelerator {accelerator} --output {records}/{today}_airbench_{device}.csv"
)
CHOOSE = "benchmarks/choose.py --recipe {best}"
SCALE = "benchmarks/scale.py --device {device} {scaled}"


def plan(values: dict[str, Any]) -> dict[str, Stage]:
    """All stages by name.

    Args:
        values: `REAL` or `DRY`, and each of `PLACES`, quoted as for a shell; without
            one, the steps have their names, but no commands that run.
    """
    values = dict.fromkeys(PLACES, "") | values

    def step(name: str, text: str, own: dict[str, Any], **marks: Any) -> Step:
        line = text.format_map(values | own | {"today": today()})
        return Step(name, shlex.split(line), **marks)

    def train(name: str, flags: str, **marks: Any) -> Step:
        text = f"{TRAIN} --name {name} {flags}"
        return step(name, text, {}, leaves_run=True, **marks)

    def measure(name: str, text: str) -> Step:
        flags = "--seeds {seeds} --output {records}/runs.csv"
        return step(name, f"{MEASURE} {text} {flags}", {})

    def pace(name: str, flags: str) -> list[Step]:
        return [
            step(f"{name}_{batch}", f"{PACE} {flags}", {"batch": batch})
            for batch in values["batches"]
        ]

    def sweep(recipe: str, grid: Grid, record: str) -> list[Step]:
        steps = []
        for point in itertools.product(*grid.split.values()):
            own = dict(zip(grid.split, ([value] for value in point), strict=True))
            flags = [
                f"--sweep.{flag} [{','.join(map(str, found))}]"
                for flag, found in (own | grid.sweep).items()
            ]
            text = f"{MEASURE} {recipe} --select --timed false {' '.join(flags)} "
            text += f"{grid.seeds} --output {{records}}/{record}"
            name = f"sweep_{'_'.join(map(str, point))}"
            steps.append(step(name, text, {}, alone=False))
        return steps

    def choose(record: str, name: str, flags: str = "") -> list[Step]:
        text = f"{CHOOSE} --runs {{records}}/{record} {flags}"
        return [
            step(f"choose_{name}", f"{text} --output {{records}}/{name}.yaml", {}),
            measure(f"measure_{name}", f"{{records}}/{name}.yaml"),
        ]

    repeatable = "{short} --deterministic true"
    quick = "--against [loop] " + THROUGHPUT
    checks = [
        train("default_seed0", "--tta flip", recipe="default"),
        step("tests", "-m pytest -q -p no:cacheprovider {tests}", {}),
        train("deterministic", repeatable),
        train("again", repeatable, same_as="deterministic"),
        train(
            "stopped",
            repeatable + " --ckpt_every_n_steps {every}",
            same_as="deterministic",
            is_stopped=True,
        ),
        train("graphed", repeatable + " --cuda_graph {graph}", same_as="deterministic"),
        train("half", "{short} --precision {half}"),
        train("compiled", "{short} --compile true"),
        train("nccl", "{short} --strategy ddp"),
    ]
    paces = [
        *pace("profile", PROFILE),
        *pace("plain", "--against {against} " + THROUGHPUT),
        *pace("compiled", "--train.compile default " + quick),
        *pace("reduced_overhead", "--train.compile reduce-overhead " + quick),
        *pace("graphed", "--train.cuda_graph {graph} " + quick),
    ]
    recipes = [
        measure("best_and_seed", "{best} {seed}"),
        *(
            train(f"default_seed{seed}", f"--seed {seed} --tta flip", recipe="default")
            for seed in range(1, values["seeds"])
        ),
    ]
    rivals = [
        step("airbench94", AIRBENCH + " {airbench}/legacy/airbench94.py", {}),
        step("airbench94_muon", AIRBENCH + " {airbench}/airbench94_muon.py", {}),
    ]
    fast = sweep("{best}", values["fast"], "fast.csv")
    for size in values["fast"].split["batch_size"]:
        flags = f"--batch_size {size} --reach {values['reach']}"
        fast += choose("fast.csv", f"fast_{size}", flags)
    accurate = sweep("{best}", values["accurate"], "accurate.csv")
    accurate += choose("accurate.csv", "accurate")
    hosts = pace("host", "--on_host true " + quick)
    for name, on_host in (("scale_device", "false"), ("scale_host", "true")):
        output = f"{{records}}/{{today}}_{name}_{{device}}.csv"
        hosts.append(step(name, f"{SCALE} --on_host {on_host} --output {output}", {}))
    return {
        "checks": Stage(
            "README: default on a GPU; all that hangs on one works", checks
        ),
        "pace": Stage("docs/lab/speed.md: profile and pace on a GPU", paces),
        "recipes": Stage("README: best, seed and default on a GPU", recipes),
        "rivals": Stage("docs/lab/speed.md: airbench on the same card", rivals),
        "fast": Stage("configs/fast.yaml: 94 % in the least time", fast),
        "accurate": Stage("configs/: more accuracy in 24 epochs", accurate),
        "rates": Stage(
            "docs/lab/learning_rate.md: auto against fixed rates, 24 epochs",
            sweep("{default}", values["rates"], "lr_sweep.csv"),
        ),
        "host": Stage("docs/lab/scale.md: images on a GPU and beside it", hosts),
    }
