"""What `--lr auto` reaches on held-out images, against a sweep of fixed max LRs.

    python benchmarks/lr_sweep.py configs/seed.yaml configs/best.yaml --max_epochs 3
    python benchmarks/lr_sweep.py

The first trains each recipe at every batch size with each fixed rate and with auto, as
`recipe.py --select` would: on held-out training images, without the test set. All of
these trainings have their first seed before any has its second, and each adds its row
to `benchmarks/results/lr_sweep.csv` at once, so a sweep that was stopped goes on with
the same command, and a part of it may be measured by itself. The run folders are not
kept. The second trains nothing: it writes what is on record into docs/learning_rate.md,
and `pictures.py` draws it.

A rate at which the loss becomes infinite ends the sweep: leave that one out of --lrs.
"""

import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks.recipe import plain_flags, put_on_record, read_flags, recipe_name
from benchmarks.tables import (
    Run,
    by_kind,
    read_runs,
    short_names,
    spread,
    values,
    with_table,
)
from common import cli
from common.errors import InputError
from config import Config
from datamodule import DEFAULT_VAL_SIZE

PROJECT = Path(__file__).resolve().parent.parent
RUNS = PROJECT / "benchmarks" / "results" / "lr_sweep.csv"
PAGE = PROJECT / "docs" / "learning_rate.md"
AUTO = "auto"
CLOSE = 0.2  # points behind the best fixed rate that still count as "within"
CONFIDENCE = 0.95

Sweep = dict[str, list[Run]]  # by rate, auto last; each in the order of the same seeds


class Setting(NamedTuple):
    """What the runs of a sweep share."""

    recipe: str  # without batch size and rate
    batch_size: int
    device: str
    precision: str


class Gap(NamedTuple):
    """How far auto is behind the best fixed rate, in percentage points."""

    best: str  # the rate with the highest mean accuracy
    points: float
    low: float  # end of the confidence interval
    high: float


def lr_sweep(
    configs: list[str],
    lrs: tuple[float, ...] = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04),
    batch_sizes: tuple[int, ...] = (128, 512),
    max_epochs: int | None = None,
    seeds: int = 1,
    first_seed: int = 0,
    data_dir: str | None = None,
    output: str = str(RUNS),
) -> None:
    """Train recipes with fixed max LRs and with auto, and put every run on record.

    Args:
        configs: YAML files of flags of train.py, one a recipe.
        lrs: The fixed rates.
        batch_sizes: Images in a batch.
        max_epochs: Length of each run in epochs; null for that of the file.
        seeds: Number of runs of each, all with seeds of their own.
        first_seed: The first of them.
        data_dir: Folder of the images; null for that of the file.
        output: CSV file of the runs.

    Raises:
        InputError: A value or file that the user can put right.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be a whole number, at least 1, got {seeds}")
    for flag, given in (("lrs", lrs), ("batch_sizes", batch_sizes)):
        if not given:
            raise InputError(f"--{flag} is an empty list; name at least one value")
    own = {"max_epochs": max_epochs, "data_dir": data_dir}
    trainings = plan(configs, lrs, batch_sizes, own)
    runs = Path(output)
    runs.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(first_seed, first_seed + seeds):
        for stem, flags in trainings:
            print(f"{recipe_name(stem, flags)}:", flush=True)
            # TensorBoard's writer may still be at work in it.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                flags = flags | {"output_dir": folder}
                put_on_record(stem, flags, [seed], runs, timed=False)
    print(sweep_table(read_runs(runs)))


def plan(
    configs: Sequence[str],
    lrs: Sequence[float],
    batch_sizes: Sequence[int],
    own: dict[str, Any],
) -> list[tuple[str, dict[str, Any]]]:
    """The trainings of a seed: the recipe's stem and all flags of each.

    Args:
        configs: YAML files of flags, one a recipe.
        lrs: The fixed rates, to which auto is added.
        batch_sizes: Images in a batch.
        own: Flags that overrule those of the files where they are not None.

    Raises:
        InputError: A value or file that the user can put right.
    """
    trainings = []
    for config in configs:
        flags = read_flags(config, own, select=True)
        for batch_size, lr in itertools.product(batch_sizes, (*lrs, AUTO)):
            point = flags | {"batch_size": batch_size, "lr": lr}
            Config(**point)  # or it says what is wrong
            trainings.append((Path(config).stem, point))
    return trainings


def find_sweeps(runs: Sequence[Run]) -> dict[Setting, Sweep]:
    """The sweeps on record, of each the seeds that all of its rates have.

    So the rates of a sweep differ in nothing but the rate, held-out images included.
    """
    found: dict[Setting, dict[str, dict[str, Run]]] = {}
    held_out = [run for run in runs if run["val/acc"]]
    for (name, device, precision), same in by_kind(held_out).items():
        recipe, batch_size, lr = split_name(name)
        rates = found.setdefault(Setting(recipe, batch_size, device, precision), {})
        rates[lr] = {run["seed"]: run for run in same}
    return {setting: common_seeds(rates) for setting, rates in sorted(found.items())}


def split_name(name: str) -> tuple[str, int, str]:
    """The name of a recipe without batch size and rate; these two.

    A name that lacks one means that of the plain recipe, as `recipe_name` made it.
    """
    plain = plain_flags()
    found = {flag: str(plain[flag]) for flag in ("batch_size", "lr")}
    start, *parts = name.split(", ")
    kept = [start]
    for part in parts:
        flag, _, value = part.partition(" ")
        if flag in found:
            found[flag] = value
        else:
            kept.append(part)
    return ", ".join(kept), int(found["batch_size"]), found["lr"]


def common_seeds(rates: dict[str, dict[str, Run]]) -> Sweep:
    """The runs of the seeds that all rates have, from the least rate to auto."""
    seeds = sorted(set.intersection(*map(set, rates.values())), key=int)
    order = sorted(rates, key=lambda lr: math.inf if lr == AUTO else float(lr))
    return {lr: [rates[lr][seed] for seed in seeds] for lr in order}


def find_gap(sweep: Sweep, images: int | None) -> Gap | None:
    """How far auto is behind the best fixed rate; None if no seed has run both.

    The best of several noisy means is likely to be one that luck has raised. So the gap
    to each rate has an interval, wide enough for all of them to hold together
    (Bonferroni); where they do, the gap to the rate that is truly best lies between the
    highest lower end and the highest upper end.

    Args:
        sweep: Runs by rate.
        images: How many were held out in each; None where that is not known.
    """
    accuracies = {lr: values(runs, "val/acc") for lr, runs in sweep.items()}
    auto = accuracies.pop(AUTO, [])
    if not auto or not accuracies:
        return None
    outside = (1 - CONFIDENCE) / len(accuracies)
    reach = statistics.NormalDist().inv_cdf(1 - outside / 2)
    gaps, errors = {}, {}
    for lr, fixed in accuracies.items():
        gaps[lr] = 100 * (statistics.mean(fixed) - statistics.mean(auto))
        errors[lr] = 100 * standard_error(fixed, auto, images)
    best = max(gaps, key=gaps.__getitem__)
    low = max(gaps[lr] - reach * errors[lr] for lr in gaps)
    high = max(gaps[lr] + reach * errors[lr] for lr in gaps)
    return Gap(best, gaps[best], low, high)


def standard_error(
    first: Sequence[float], second: Sequence[float], images: int | None
) -> float:
    """That of the difference of two mean accuracies over the same seeds.

    It is the larger of two: the binomial one of the images, as if the two runs of a
    seed had not shared theirs, and that of the differences over seeds. Infinite where
    neither is known.

    Args:
        first: Accuracies as fractions, a seed each.
        second: Likewise, with the same seeds.
        images: How many each is the accuracy on; None where that is not known.
    """
    errors, count = [], len(first)
    if images is not None:
        shares = statistics.mean(first), statistics.mean(second)
        variance = sum(share * (1 - share) for share in shares)
        errors.append(math.sqrt(variance / (count * images)))
    if count > 1:
        differences = [one - other for one, other in zip(first, second, strict=True)]
        errors.append(statistics.stdev(differences) / math.sqrt(count))
    return max(errors, default=math.inf)


def verdict(gap: Gap | None) -> str:
    """Whether auto is as close to the best fixed rate as it should be."""
    if gap is not None and gap.high <= CLOSE:
        return f"within {CLOSE}"
    if gap is not None and gap.low > CLOSE:
        return f"not within {CLOSE}"
    return "cannot be told"


def sweep_table(runs: Sequence[Run]) -> str:
    """A row a recipe, batch size and device: what each rate reached, and the gap."""
    sweeps = find_sweeps(runs)
    rates = {lr for sweep in sweeps.values() for lr in sweep} - {AUTO}
    lrs = sorted(rates, key=float)
    head = ["recipe", "batch size", "n", *lrs, "auto", "its picks"]
    head += ["auto behind the best, points", "verdict", "on"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    names = short_names(setting.recipe for setting in sweeps)
    for setting, sweep in sweeps.items():
        images = DEFAULT_VAL_SIZE if " on cifar10, " in setting.recipe else None
        gap = find_gap(sweep, images)
        behind = f"{gap.points:z.2f} ({gap.low:z.2f} to {gap.high:z.2f})" if gap else ""
        cells = [
            names[setting.recipe],
            str(setting.batch_size),
            str(len(next(iter(sweep.values())))),
        ]
        for lr in (*lrs, AUTO):
            cell = spread(values(sweep.get(lr, []), "val/acc"))
            cells.append(f"**{cell}**" if gap and lr == gap.best else cell)
        picks = (f"{lr:.2g}" for lr in values(sweep.get(AUTO, []), "max_lr"))
        cells += [" ".join(picks), behind, verdict(gap)]
        lines.append(f"| {' | '.join([*cells, ', '.join(setting[2:])])} |")
    return "\n".join(lines)


def section(runs: Path) -> str:
    """What docs/learning_rate.md says of the sweep on record, if there is one."""
    if not runs.exists():
        return "A sweep of fixed rates has not been measured yet."
    picture = "![Accuracy over the max LR, fixed and picked](pictures/lr_sweep.svg)"
    return f"{picture}\n\n{sweep_table(read_runs(runs))}"


def write_page() -> None:
    """Write the sweep on record into docs/learning_rate.md."""
    page = with_table(PAGE.read_text(encoding="utf-8"), section(RUNS), "lr_sweep")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    cli.run(
        "lr_sweep.py", lr_sweep if sys.argv[1:] else write_page, outlasts_readers=True
    )
