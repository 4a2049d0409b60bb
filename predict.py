"""Name what is on images.

python predict.py cat.jpg photos/ --ckpt_path runs/NAME/checkpoints/last.ckpt
python predict.py photos/ --json > photos.json
python predict.py --help
"""

import hashlib
import json as json_format
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from analysis.explanation import layer_cam
from analysis.figures import explanation
from analysis.inference import (
    BATCH_SIZE,
    Prediction,
    predict_views,
    read_images,
    top_predictions,
)
from analysis.loading import load_model
from common import cli
from common.errors import InputError
from common.files import expanded
from common.text import one_line
from images.files import FORMATS, list_images, say_others
from lightning_module import LitCustomResNet


def predict(
    images: list[str],
    ckpt_path: str | None = None,
    json: bool = False,
    explain: str | None = None,
    top: int = 5,
) -> None:
    """Name what is on images, and mark those of probably none of the classes.

    Args:
        images: Image files, and folders whose images are all taken.
        ckpt_path: Checkpoint of the network; null for the project's own weights.
        json: Write JSON instead of a table.
        explain: Folder for pictures of where the network looks (LayerCAM).
        top: How many classes to name for each image.

    Raises:
        InputError: A file cannot be read; all others are done by then.
    """
    if top < 1:
        raise InputError(f"--top must be a whole number, at least 1, got {top}")
    model = load_model(ckpt_path)
    folder = None if explain is None else expanded(explain)
    # What is in the folder of explanations comes from here.
    passed_over = [] if folder is None else [os.path.realpath(folder)]
    found = find_images(map(os.path.expanduser, images), passed_over)
    paths = list(dict.fromkeys(found))
    if not paths:
        raise InputError("no images; give files or folders")
    if folder is not None:
        make_folder(folder)
    width = max(len(one_line(path)) for path in paths)
    results: list[Prediction] = []
    for start in range(0, len(paths), BATCH_SIZE):
        batch = predict_batch(model, paths[start : start + BATCH_SIZE], top, folder)
        results += batch
        if not json:
            show(batch, width)
    if json:
        print(json_format.dumps(results, indent=2))
    failed = sum(result["error"] is not None for result in results)
    if failed:
        raise InputError(f"{failed} of {len(results)} images could not be read")


def find_images(names: Iterable[str], passed_over: Collection[str]) -> Iterator[str]:
    """The files among paths as they are, and the images below the folders, sorted.

    Args:
        names: Files and folders.
        passed_over: Real paths of folders of explanations, to leave out.

    Raises:
        InputError: A folder has none, cannot be read, or is one of explanations.
    """
    for name in names:
        if not os.path.isdir(name):
            yield name
            continue
        if os.path.realpath(name) in passed_over:
            raise InputError(
                f"--explain {one_line(name)}: also a folder of images; give another"
            )
        try:
            found, others = list_images(name, passed_over)
        except OSError as error:
            raise InputError(
                f"{one_line(error.filename)}: cannot be read ({error.strerror}); leave "
                "it out"
            ) from None
        if not found:
            raise InputError(
                f"{one_line(name)}: no image ({', '.join(FORMATS)}) in this folder; "
                "give another, or files"
            )
        say_others(name, others)
        yield from found


def predict_batch(
    model: LitCustomResNet, paths: Sequence[str], top: int, folder: Path | None
) -> list[Prediction]:
    """What the network says of at most `BATCH_SIZE` files, in their order.

    Args:
        model: As `load_model` gives it.
        paths: The files, each once.
        top: How many classes to name of each.
        folder: Where to save each image, as the network sees it, beside where it looks;
            None for nowhere.
    """
    views, errors = read_images(paths)
    results: dict[str, Prediction] = {
        path: {
            "file": path,
            "predictions": [],
            "known": False,
            "error": errors.get(path),
        }
        for path in paths
    }
    readable = [path for path in paths if path not in errors]
    if readable:
        probabilities, are_known = predict_views(model, views)
        guesses = top_predictions(probabilities, model.hparams["classes"], top)
        for path, guess, known in zip(readable, guesses, are_known, strict=True):
            results[path]["predictions"] = guess
            results[path]["known"] = bool(known)
        if folder is not None:
            images = views[:, 0]
            heats = layer_cam(model, images, probabilities.argmax(dim=1))
            for path, image, heat in zip(readable, images, heats, strict=True):
                explanation(image, heat).save(folder / picture_name(path))
    return list(results.values())


def picture_name(path: str) -> str:
    """A name that no other path has, and that is short enough for any file system."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
    return f"{Path(path).stem[:40]}_{digest[:12]}.png"


def show(results: Sequence[Prediction], width: int) -> None:
    """Print a row a file; those that cannot be read go to stderr."""
    named = [guess["label"] for result in results for guess in result["predictions"]]
    longest = max(map(len, named), default=0)
    for result in results:
        if result["error"] is not None:
            print(f"predict.py: {result['error']}", file=sys.stderr)
            continue
        cells = [
            f"{guess['label']:<{longest}} {100 * guess['probability']:5.1f} %"
            for guess in result["predictions"]
        ]
        if not result["known"]:
            cells.append("probably none of the classes")
        print(f"{one_line(result['file']):<{width}}  {'  '.join(cells)}", flush=True)


def make_folder(folder: Path) -> None:
    """Make the folder of `--explain`.

    Raises:
        InputError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--explain {one_line(folder)}: not a folder that can be made "
            f"({error.strerror}); choose another"
        ) from None


def main() -> None:
    """The command line."""
    cli.run("predict.py", predict)


if __name__ == "__main__":
    main()
