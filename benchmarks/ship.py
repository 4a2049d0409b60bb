"""Put the median run of a recipe into the project, as weights that anyone can use.

    python benchmarks/ship.py --run runs/recipes/best_seed2 --data_dir data/cifar10
    python benchmarks/ship.py

Of all runs of the recipe on record it must be the median by test accuracy (of an even
number, the lower of the two in the middle), so that the weights are neither a lucky
run's nor chosen on the test set. They are rounded to float16 and tested as they are
then, in float32 on a CPU, with and without flip TTA; what they reach stands in their
metadata, and with their SHA-256 in the README. Without --run only the README is
written anew: more runs are on record, and the weights are still of the median one.
"""

import hashlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.loading import WEIGHTS, load_model, read_trained
from analysis.weights import read_weights, save_weights
from benchmarks.tables import README, RUNS, Run, by_kind, read_given, with_table
from common import cli
from common.errors import InputError
from common.files import replacing
from common.text import one_line
from evaluate import evaluate
from export import export, make_contiguous

MEASURED = ("test/acc", "test/acc_tta", "test/loss", "precision", "versions")


def ship(run: str | None = None, data_dir: str = "data", runs: str = str(RUNS)) -> None:
    """Write the weights of the median run of a recipe, and what the README says of it.

    Args:
        run: Folder of the run; null for the weights that are there.
        data_dir: Folder of the images that it was tested on.
        runs: CSV file of the runs on record.

    Raises:
        InputError: The run is not there, not on record, or not the median.
    """
    on_record = read_given(runs)
    if run is not None:
        write_median(run, data_dir, on_record)
    table, page = weights_table(WEIGHTS, on_record), README.read_text(encoding="utf-8")
    README.write_text(with_table(page, table, "weights"), encoding="utf-8")
    print(table)


def write_median(run: str, data_dir: str, runs: list[Run]) -> None:
    """Write the weights of a run, which must be the median one.

    Args:
        run: Its folder.
        data_dir: Folder of the images.
        runs: All on record.

    Raises:
        InputError: It is not there, not on record, or not the median.
    """
    if not (Path(run) / "metrics.json").is_file():
        raise InputError(f"--run {one_line(run)}: no finished run; give another")
    metrics = json.loads((Path(run) / "metrics.json").read_text())
    same = runs_like(metrics, runs)
    middle = median_run(same)
    if middle["seed"] != str(metrics["seed"]):
        raise InputError(
            f"--run {one_line(run)}: the median of the {len(same)} runs of "
            f"{middle['recipe']!r} is that with seed {middle['seed']}; give its folder"
        )
    found = {"recipe": middle["recipe"], "seed": metrics["seed"]}
    write_tested(Path(run) / "checkpoints" / "last.ckpt", data_dir, found)


def write_tested(checkpoint: Path, data_dir: str, found: dict[str, Any]) -> None:
    """Write the weights of a checkpoint, rounded, with what they reach then.

    Args:
        checkpoint: That of the last epoch.
        data_dir: Folder of the images.
        found: What else is known of the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / WEIGHTS.name
        export(
            format="safetensors",
            ckpt_path=str(checkpoint),
            output=str(draft),
            half=True,
        )
        reached = evaluate(str(draft), data_dir=data_dir, tta="flip", accelerator="cpu")
        found = found | {name: reached[name] for name in MEASURED}
        model = load_model(draft)
        make_contiguous(model)
        notes = {"config": read_trained(draft)["config"], "measured": found}
        save_weights(model, notes, draft)
        WEIGHTS.parent.mkdir(exist_ok=True)
        with replacing(WEIGHTS) as file:
            file.write(draft.read_bytes())


def runs_like(metrics: dict[str, Any], runs: list[Run]) -> list[Run]:
    """The runs on record that differ in their seed only from one of them.

    Raises:
        InputError: It is not on record.
    """
    names = ("seed", "test/acc", "test/loss", "train/loss")
    for same in by_kind(runs).values():
        for run in same:
            if all(run[name] == str(metrics[name]) for name in names):
                return same
    raise InputError("--run is not on record; add it with benchmarks/tables.py --add")


def median_run(runs: list[Run]) -> Run:
    """The run in the middle by test accuracy."""
    middle = statistics.median_low(float(run["test/acc"]) for run in runs)
    return next(run for run in runs if float(run["test/acc"]) == middle)


def weights_table(path: Path, runs: list[Run]) -> str:
    """What the weights in a file reach, and how to know the file.

    Raises:
        InputError: They are not those of the median run on record.
    """
    content = path.read_bytes()
    measured = read_weights(path)["measured"]
    seed = str(measured["seed"])
    counts = [
        len(same)
        for (recipe, *_), same in by_kind(runs).items()
        if recipe == measured["recipe"] and median_run(same)["seed"] == seed
    ]
    if not counts:
        raise InputError(
            f"{path.name} holds seed {seed} of {measured['recipe']!r}, which is not "
            "the median of the runs on record; give --run the folder of that one"
        )
    of = f"seed {seed}, the median of {max(counts)}" if max(counts) > 1 else "the only"
    cells = {
        "file": f"`weights/{path.name}`, {len(content) / 2**20:.1f} MiB",
        "run": f"{measured['recipe']}; {of} on record",
        "test accuracy": f"{100 * measured['test/acc']:.2f} %",
        "with flip TTA": f"{100 * measured['test/acc_tta']:.2f} %",
        "SHA-256": f"`{hashlib.sha256(content).hexdigest()}`",
    }
    lines = ["| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {cell} |" for key, cell in cells.items())])


if __name__ == "__main__":
    cli.run("ship.py", ship, outlasts_readers=True)
