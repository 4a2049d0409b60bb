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
    "part": 64,  # of a batch, with its own statistics
    "scaled": "--repeats 1",
    "batches": [512, 256],
    "seeds": 5,
    "repeats": 10,
    "reach": 0.94,
    "fast": Grid(
        {"batch_size": [256, 512], "max_epochs": [12, 16, 20]},
        {"lr": [0.0035, 0.005, 0.007], "weight_decay": [0.1, 0.2]},
        "--seeds 3 --best 2",
    ),
    "long": Grid({"cutout": [10, 14]}, {"max_epochs": [96]}, "--seeds 2"),
    "rates": Grid(
        {"batch_size": [256], "lr": [0.0018, 0.0025, 0.0035, 0.005, 0.007, "auto"]},
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
    "part": 16,
    "scaled": "--repeats 1 --epochs [1] --images [100,200] --batch_sizes [8] "
    "--processes [1] --images_per_epoch 16",
    "batches": [16],
    "seeds": 2,
    "repeats": 1,
    "reach": 0.01,
    "fast": Grid({"batch_size": [16], "max_epochs": [1, 2]}, {}, "--seeds 2 --best 1"),
    "long": Grid({"cutout": [4, 8]}, {"max_epochs": [2]}, "--seeds 1"),
    "rates": Grid({"lr": [0.01, "auto"]}, {}, "--seeds 1"),
}

# Where things are: folders, recipes, and flags that say where the images are.
PLACES = (
    *("data", "data_of_recipes", "records", "runs", "airbench"),
    *("best", "lean", "seed", "default"),
)

TRAIN = "train.py --accelerator {accelerator} {data} {small} --output_dir {runs}"
MEASURE = "benchmarks/measure.py {data_of_recipes}"
PACE = "benchmarks/pace.py --device {device} --batch_size {batch} {paced}"
THROUGHPUT = "--output {records}/{today}_throughput_{device}.csv"
QUICK = "--against [loop] " + THROUGHPUT
PROFILE = "--profile {records}/{today}_profile_{device}_{batch}.md"
AIRBENCH = "benchmarks/studies/airbench.py {data} --repeats {repeats} "
AIRBENCH += (
    "--accelerator {accelerator} --output {records}/{today}_airbench_{device}.csv"
)
SCALE = "benchmarks/scale.py --device {device} {scaled}"


class Writer:
    """Writes the steps of stages, with everything in braces filled in.

    Args:
        values: `REAL` or `DRY`, and each of `PLACES`, quoted as for a shell.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values | {"today": today()}

    def step(self, name: str, text: str, **marks: Any) -> Step:
        """A command."""
        return Step(name, shlex.split(text.format_map(self.values)), **marks)

    def train(self, name: str, flags: str, **marks: Any) -> Step:
        """A training that leaves a run folder."""
        return self.step(
            name, f"{TRAIN} --name {name} {flags}", leaves_run=True, **marks
        )

    def measure(self, name: str, recipes: str) -> Step:
        """Recipes with several seeds, tested."""
        flags = "--seeds {seeds} --output {records}/runs.csv"
        return self.step(name, f"{MEASURE} {recipes} {flags}")

    def pace(self, name: str, flags: str) -> list[Step]:
        """The pace with each batch size."""
        return [
            Writer(self.values | {"batch": batch}).step(
                f"{name}_{batch}", f"{PACE} {flags}"
            )
            for batch in self.values["batches"]
        ]

    def sweep(self, recipe: str, grid: Grid, record: str) -> list[Step]:
        """The points of a grid, on held-out images."""
        steps = []
        for point in itertools.product(*grid.split.values()):
            own = {flag: [value] for flag, value in zip(grid.split, point, strict=True)}
            flags = [
                f"--sweep.{flag} [{','.join(map(str, values))}]"
                for flag, values in (own | grid.sweep).items()
            ]
            text = f"{MEASURE} {recipe} --select --timed false {' '.join(flags)} "
            text += f"{grid.seeds} --output {{records}}/{record}"
            name = f"sweep_{'_'.join(map(str, point))}"
            steps.append(self.step(name, text, alone=False))
        return steps

    def choose(self, recipe: str, record: str, name: str, flags: str) -> list[Step]:
        """The best of a sweep, and how it does on the test set."""
        text = f"benchmarks/choose.py --recipe {recipe} --runs {{records}}/{record} "
        text += flags
        return [
            self.step(f"choose_{name}", f"{text} --output {{records}}/{name}.yaml"),
            self.measure(f"measure_{name}", f"{{records}}/{name}.yaml"),
        ]


def plan(values: dict[str, Any]) -> dict[str, Stage]:
    """All stages by name.

    Args:
        values: `REAL` or `DRY`, and each of `PLACES`, quoted as for a shell; without
            one, the steps have their names, but no commands that run.
    """
    write = Writer(dict.fromkeys(PLACES, "") | values)
    return {
        "checks": Stage(
            "README: default on a GPU; all that hangs on one works", _checks(write)
        ),
        "lean": Stage(
            "docs/lab/accuracy.md: best without sharpness-aware steps", _lean(write)
        ),
        "long": Stage("configs/long.yaml: more accuracy in 96 epochs", _long(write)),
        "recipes": Stage("README: best, seed and default on a GPU", _recipes(write)),
        "pace": Stage("docs/lab/speed.md: profile and pace on a GPU", _paces(write)),
        "rivals": Stage("docs/lab/speed.md: airbench on the same card", _rivals(write)),
        "fast": Stage("configs/fast.yaml: 94 % in the least time", _fast(write)),
        "rates": Stage(
            "docs/lab/learning_rate.md: auto against fixed rates, 24 epochs",
            write.sweep("{default}", write.values["rates"], "lr_sweep.csv"),
        ),
        "host": Stage("docs/lab/scale.md: images on a GPU and beside it", _host(write)),
    }


def _checks(write: Writer) -> list[Step]:
    repeatable, same = "{short} --deterministic true", {"same_as": "deterministic"}
    stopped = repeatable + " --ckpt_every_n_steps {every}"
    sharp = repeatable + " --sam_radius 0.1 --sam_share 0.5"
    parts = repeatable + " --norm_batch {part}"
    return [
        write.train("default_seed0", "--tta flip", recipe="default"),
        write.step("tests", "-m pytest -q -p no:cacheprovider {tests}"),
        write.train("deterministic", repeatable),
        write.train("again", repeatable, **same),
        write.train("stopped", stopped, is_stopped=True, **same),
        write.train("graphed", repeatable + " --cuda_graph {graph}", **same),
        write.train("sharp", sharp),
        write.train("sharp_graphed", sharp + " --cuda_graph {graph}", same_as="sharp"),
        write.train("parts", parts),
        write.train("parts_graphed", parts + " --cuda_graph {graph}", same_as="parts"),
        write.train("half", "{short} --precision {half}"),
        write.train("compiled", "{short} --compile true"),
        write.train("nccl", "{short} --strategy ddp"),
    ]


def _paces(write: Writer) -> list[Step]:
    return [
        *write.pace("profile", PROFILE),
        *write.pace("plain", "--against {against} " + THROUGHPUT),
        *write.pace("compiled", "--train.compile default " + QUICK),
        *write.pace("reduced_overhead", "--train.compile reduce-overhead " + QUICK),
        *write.pace("graphed", "--train.cuda_graph {graph} " + QUICK),
    ]


def _recipes(write: Writer) -> list[Step]:
    return [
        write.measure("best_and_seed", "{best} {seed}"),
        *(
            write.train(
                f"default_seed{seed}", f"--seed {seed} --tta flip", recipe="default"
            )
            for seed in range(1, write.values["seeds"])
        ),
    ]


def _rivals(write: Writer) -> list[Step]:
    return [
        write.step("airbench94", AIRBENCH + " {airbench}/legacy/airbench94.py"),
        write.step("airbench94_muon", AIRBENCH + " {airbench}/airbench94_muon.py"),
    ]


def _fast(write: Writer) -> list[Step]:
    steps = write.sweep("{default}", write.values["fast"], "fast.csv")
    for size in write.values["fast"].split["batch_size"]:
        flags = f"--batch_size {size} --reach {{reach}}"
        steps += write.choose("{default}", "fast.csv", f"fast_{size}", flags)
    return steps


def _lean(write: Writer) -> list[Step]:
    recipe = f"{MEASURE} {{lean}} --timed false --seeds 1 --output {{records}}/runs.csv"
    return [
        write.step(f"seed{seed}", f"{recipe} --first_seed {seed}", alone=False)
        for seed in range(write.values["repeats"])
    ]


def _long(write: Writer) -> list[Step]:
    steps = write.sweep("{lean}", write.values["long"], "long.csv")
    return steps + write.choose("{lean}", "long.csv", "long", "")


def _host(write: Writer) -> list[Step]:
    steps = write.pace("host", "--on_host true " + QUICK)
    for name, on_host in (("scale_device", "false"), ("scale_host", "true")):
        output = f"{{records}}/{{today}}_{name}_{{device}}.csv"
        steps.append(write.step(name, f"{SCALE} --on_host {on_host} --output {output}"))
    return steps
