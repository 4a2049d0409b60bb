"""What each step from one recipe to another brings, measured with several seeds.

    python benchmarks/ablation.py --data_dir data/cifar10 --max_epochs 6 --select
    python benchmarks/ablation.py --page

The first trains the recipe of `--first`, then that of each step on the way to `--last`,
which keeps what the steps before it have changed, as `recipe.py` would. The steps are
what differs between the two files. All of them have their first seed before any has its
second, so a measurement that is stopped early leaves a whole table; the same command
goes on with it. The second writes the table into docs/accuracy.md and trains nothing.
"""

import itertools
import re
import statistics
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare import FEWEST, paired
from benchmarks.recipe import (
    OTHERWISE,
    plain_flags,
    put_on_record,
    read_flags,
    recipe_name,
)
from benchmarks.tables import (
    ACCURACIES,
    Run,
    by_kind,
    percent,
    read_runs,
    values,
    with_table,
)
from common import cli
from common.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent
RUNS = PROJECT / "benchmarks" / "results" / "ablation.csv"
PAGE = PROJECT / "docs" / "accuracy.md"
# Flags that change together, in the order of the steps. Any other flag that differs is
# a step of its own, after these.
STEPS = {
    "label smoothing": ("label_smoothing",),
    "weight decay": ("weight_decay",),
    "flip": ("flip",),
    "border of the crop": ("padding_mode",),
    "cutout": ("cutout",),
    "batch size and learning rate": ("batch_size", "lr", "lr_steps", "lr_finder"),
    # Last, for how far an average reaches back, in epochs, hangs on the batch size.
    "averaged weights": ("ema_decay",),
}
SHARED = ("accelerator", "precision", "data", "data_dir", "max_epochs")

Flags = dict[str, Any]
Step = tuple[str, Flags]


class Row(NamedTuple):
    """A step on record: its name, its flags that are not plain, its accuracies."""

    step: str
    flags: dict[str, str]
    accuracies: dict[str, float]  # by seed


def ablation(
    first: str = str(PROJECT / "configs" / "seed.yaml"),
    last: str = str(PROJECT / "configs" / "best.yaml"),
    seeds: int = 3,
    first_seed: int = 0,
    max_epochs: int | None = None,
    select: bool = False,
    data_dir: str | None = None,
    output: str = str(RUNS),
    page: bool = False,
) -> None:
    """Measure what each step from one recipe to another brings.

    Args:
        first: YAML file of flags of train.py from which the steps lead away.
        last: The one to which they lead.
        seeds: Number of runs of each step, all with seeds of their own.
        first_seed: The first of them.
        max_epochs: Length of each run in epochs; null for that of the files.
        select: Compare on held-out training images, and leave the test set alone.
        data_dir: Folder of the images; null for that of the files.
        output: CSV file of the runs of this ablation.
        page: Train nothing, and write what is on record into docs/accuracy.md.

    Raises:
        InputError: A value or file that the user can put right.
    """
    runs = Path(output)
    if page:
        if not runs.is_file():
            raise InputError(f"--output {output}: no such file; measure without --page")
        text = with_table(PAGE.read_text("utf-8"), section(read_runs(runs)), "ablation")
        PAGE.write_text(text, "utf-8")
        return
    if seeds < 1:
        raise InputError(f"--seeds must be a whole number, at least 1, got {seeds}")
    own = {"data_dir": data_dir, "max_epochs": max_epochs}
    steps = find_steps(Path(first).stem, *read_both(first, last, own, select=select))
    check_record(runs, {recipe_name(*step) for step in steps}, select=select)
    runs.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(first_seed, first_seed + seeds):
        for name, flags in steps:
            print(f"{name}:", flush=True)
            put_on_record(name, flags, [seed], runs, timed=False)
    print(section(read_runs(runs)))


def read_both(first: str, last: str, own: Flags, *, select: bool) -> list[Flags]:
    """All flags of two recipes that can be compared.

    Args:
        first: YAML file of flags.
        last: Likewise.
        own: Flags that overrule both files where they are not None.
        select: As for `read_flags`.

    Raises:
        InputError: A file is not there, or the steps would not be measured alike.
    """
    both = []
    for name, config in (("first", first), ("last", last)):
        if not Path(config).is_file():
            raise InputError(f"--{name} {config}: no such file; give a YAML file")
        both.append(read_flags(config, own, select=select))
    for flag in SHARED:
        if both[0][flag] != both[1][flag]:
            raise InputError(
                f"--first has {flag} {both[0][flag]}, --last has {both[1][flag]}; "
                "give both the same, for the steps are measured alike"
            )
    return both


def find_steps(name: str, first: Flags, last: Flags) -> list[Step]:
    """The recipes on the way, each with its name and all of its flags, both included.

    Raises:
        InputError: There is no way, for the two are one recipe.
    """
    differing = [
        flag
        for flag, value in first.items()
        if flag not in OTHERWISE and value != last[flag]
    ]
    if not differing:
        raise InputError("--first and --last are the same recipe; give two")
    grouped = {*itertools.chain(*STEPS.values())}
    groups = STEPS | {flag: (flag,) for flag in differing if flag not in grouped}
    steps = [(name, first)]
    for step, flags in groups.items():
        changes = {flag: last[flag] for flag in flags if flag in differing}
        if changes:
            steps.append((step, steps[-1][1] | changes))
    return steps


def check_record(runs: Path, recipes: Collection[str], *, select: bool) -> None:
    """Make sure that the file holds no runs of another ablation.

    Raises:
        InputError: It does; its table would be neither's.
    """
    for run in read_runs(runs):
        if run["recipe"] not in recipes or bool(run["val/acc"]) != select:
            raise InputError(
                f"--output {runs} holds runs of another ablation, such as "
                f"{run['recipe']!r}; give another file"
            )


def section(runs: Sequence[Run]) -> str:
    """A table for each kind of runs that compare, below a line that says which."""
    kinds: dict[str, list[Row]] = {}
    for (recipe, *place), same in by_kind(runs).items():
        found = re.fullmatch(r"(.+?) on (.+), (\d+) epochs(.*)", recipe)
        if found is None:
            raise InputError(f"--output: {recipe!r} is no recipe of ablation.py")
        step, images, epochs, rest = found.groups()
        flags = dict(part.split(" ", 1) for part in rest.split(", ")[1:])
        column = "test/acc" if values(same, "test/acc") else "val/acc"
        words = ACCURACIES[column].replace("val ", "held-out ")
        kind = ", ".join([images, f"{epochs} epochs", words, *place])
        accuracies = {run["seed"]: float(run[column]) for run in same}
        kinds.setdefault(kind, []).append(Row(step, flags, accuracies))
    return "\n\n".join(f"{kind}:\n\n{table(rows)}" for kind, rows in kinds.items())


def table(rows: Sequence[Row]) -> str:
    """A row a step: what it changes, its accuracies, and what they gain."""
    head = ["step", "changes", "accuracy", "n", "gain, points", "p", "gain in all", "p"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for above, row in zip([None, *rows], rows, strict=False):
        gains = ["", "", "", ""]
        if above is not None:
            gains = [*gain_and_p(above, row), *gain_and_p(rows[0], row)]
        changed = changed_flags(above.flags if above else {}, row.flags)
        accuracies = [percent([*row.accuracies.values()]), str(len(row.accuracies))]
        lines.append(f"| {' | '.join([row.step, changed, *accuracies, *gains])} |")
    return "\n".join(lines)


def gain_and_p(before: Row, after: Row) -> tuple[str, str]:
    """What a row gains over another with the seeds of both, and how certain that is."""
    seeds = sorted(before.accuracies.keys() & after.accuracies.keys(), key=int)
    if not seeds:
        return "", ""
    gains = [100 * (after.accuracies[seed] - before.accuracies[seed]) for seed in seeds]
    mean = f"{statistics.mean(gains):+.2f}"
    if not gains[1:]:
        return mean, ""
    p = f"{paired(gains):.2g}" if len(gains) >= FEWEST else ""
    return f"{mean} ± {statistics.stdev(gains):.2f}", p


def changed_flags(before: dict[str, str], after: dict[str, str]) -> str:
    """The flags of the second recipe that are not those of the first, as in a command.

    One that is gone is as in the plain recipe, from which `recipe_name` starts.
    """
    plain = plain_flags()
    changed = [flag for flag in before | after if before.get(flag) != after.get(flag)]
    return " ".join(f"`--{flag} {after.get(flag, plain[flag])}`" for flag in changed)


if __name__ == "__main__":
    cli.run("ablation.py", ablation, outlasts_readers=True)
