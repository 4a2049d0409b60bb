"""Put the median run of a recipe into the project, as weights that anyone can use.

    python benchmarks/ship.py --run runs/recipes/best_seed2

Of all runs of the recipe on record it must be the median by test accuracy (of an even
number, the lower of the two in the middle), so that the weights are neither a lucky
run's nor chosen on the test set. They are rounded to float16 and tested as they are
then, in float32 on a CPU, with and without flip TTA; what they reach stands in their
metadata, and with their SHA-256 in the README, where `tables.py` writes it, as long as
they are those of the median of all runs on record.

    python benchmarks/ship.py --robust FILE.safetensors

puts weights for corrupted images, those of `average.py` or a checkpoint, into
`weights/robust/` in the same way. They are chosen on held-out images.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd

from analysis.loading import WEIGHTS, load_model, read_trained
from analysis.weights import read_weights, save_weights
from benchmarks.recipes import FLAGS
from benchmarks.rows import markdown
from benchmarks.runs import RUNS, by_kind, labels, read_runs
from common import cli
from common.errors import InputError
from common.files import expanded, replacing
from common.text import one_line
from config import DEFAULT_DIR
from evaluate import evaluate
from export import export, known_features, make_contiguous

ROBUST = WEIGHTS.parent / "robust" / "robust.safetensors"
MEASURED = ("test/acc", "test/acc_tta", "test/loss", "precision", "versions")


def ship(
    run: str | None = None,
    data_dir: str = DEFAULT_DIR,
    runs: str | None = None,
    robust: str | None = None,
) -> None:
    """Write the weights of the median run of a recipe.

    Args:
        run: Its folder.
        data_dir: Folder of the images to test on.
        runs: CSV file of the runs on record; null for the project's own.
        robust: Weights for corrupted images, to be written instead.

    Raises:
        InputError: The run is not there, not on record, or not the median.
    """
    if (run is None) == (robust is None):
        raise InputError("give --run or --robust, and not both")
    if run is not None:
        ship_run(run, data_dir, Path(runs or RUNS))
    if robust is not None:
        ship_robust(expanded(robust), data_dir)


def ship_robust(path: Path, data_dir: str) -> None:
    """Write weights for corrupted images."""
    known = read_trained(path, "robust").get("measured", {})
    found = {"recipe": known.get("recipe", path.stem)}
    write_tested(path, ROBUST, data_dir, found)
    print(file_table(ROBUST))


def ship_run(run: str, data_dir: str, record: Path) -> None:
    """Write the weights of a run that is the median of its recipe on record.

    Raises:
        InputError: The run is not there, not on record, or not the median.
    """
    on_record = read_runs(record, must_exist=True)
    if not (Path(run) / "metrics.json").is_file():
        raise InputError(f"--run {one_line(run)}: no finished run; give another")
    metrics = json.loads((Path(run) / "metrics.json").read_text())
    same = runs_like(metrics, on_record)
    middle = median_run(same)
    recipe = labels(on_record)[same.index].iloc[0]
    if middle["seed"] != metrics["seed"]:
        raise InputError(
            f"--run {one_line(run)}: the median of the {len(same)} runs of "
            f"{recipe!r} is that with seed {middle['seed']}; give its folder"
        )
    found = {"recipe": recipe, "seed": metrics["seed"]}
    write_tested(Path(run) / "checkpoints" / "last.ckpt", WEIGHTS, data_dir, found)
    print(file_table(WEIGHTS, which_run(metrics["seed"], len(same))))


def write_tested(
    checkpoint: Path, target: Path, data_dir: str, found: dict[str, Any]
) -> None:
    """Write the weights of a checkpoint, rounded, with what they reach then.

    Args:
        checkpoint: That of the last epoch, or weights.
        target: The file to write.
        data_dir: Folder of the images.
        found: What else is known of the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / target.name
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
        notes |= known_features(model)
        save_weights(model, notes, draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            file.write(draft.read_bytes())


def runs_like(metrics: dict[str, Any], runs: pd.DataFrame) -> pd.DataFrame:
    """The runs on record that differ in their seed only from one of them.

    Args:
        metrics: That one's.
        runs: All on record.

    Raises:
        InputError: It is not on record.
    """
    identity = ["seed", "test/acc", "test/loss", "train/loss"]
    ours = pd.Series({name: metrics.get(name) for name in identity})
    for _, same in by_kind(runs):
        if (same.reindex(columns=identity) == ours).all(axis="columns").any():
            return same
    raise InputError("--run is not on record; add it with benchmarks/tables.py --add")


def median_run(runs: pd.DataFrame) -> pd.Series:
    """The run in the middle by test accuracy."""
    return runs.sort_values("test/acc").iloc[(len(runs) - 1) // 2]


def which_run(seed: int, count: int) -> str:
    """Which of so many runs on record a file of weights is of."""
    of_all = f"the median of {count} on record" if count > 1 else "the only one"
    return f"; seed {seed}, {of_all}"


def weights_table(runs: pd.DataFrame) -> str:
    """What the weights of the project reach, and how to know their file.

    Raises:
        InputError: They are not those of the median run on record.
    """
    seed, same = read_weights(WEIGHTS)["measured"]["seed"], runs_of_weights(runs)
    return file_table(WEIGHTS, which_run(seed, len(same)))


def file_table(path: Path, which: str = "") -> str:
    """What a file of weights reaches, and how to know it.

    Args:
        path: The file, in weights/.
        which: Of the runs of its recipe, to be added to its name.
    """
    name = path.relative_to(WEIGHTS.parent).as_posix()
    content, measured = path.read_bytes(), read_weights(path)["measured"]
    cells = {
        "file": f"`weights/{name}`, {len(content) / 2**20:.1f} MiB",
        "run": f"{measured['recipe']}{which}",
        "test accuracy": f"{100 * measured['test/acc']:.2f} %",
        "with flip TTA": f"{100 * measured['test/acc_tta']:.2f} %",
        "SHA-256": f"`{hashlib.sha256(content).hexdigest()}`",
    }
    return markdown(pd.DataFrame(cells.items(), columns=["", ""]))


def runs_of_weights(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs on record of which the weights of the project are the median.

    Raises:
        InputError: There are none.
    """
    saved = read_weights(WEIGHTS)
    measured, config = saved["measured"], saved["config"]
    shaping = [flag for flag in FLAGS if flag in config and flag != "lr"]
    found = [
        same
        for kind, same in by_kind(runs)
        # The file has the flags that make a run what it is, with the rate settled.
        if kind["lr"] in ("auto", str(config["lr"]))
        and all(kind[flag] == str(config[flag]) for flag in shaping)
        and median_run(same)["seed"] == measured["seed"]
    ]
    if not found:
        raise InputError(
            f"{WEIGHTS.name} holds seed {measured['seed']} of {measured['recipe']!r}, "
            "which is not the median of the runs on record; ship that one"
        )
    return max(found, key=len)


if __name__ == "__main__":
    cli.run("ship.py", ship, outlasts_readers=True)
