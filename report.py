"""Write the report of finished runs: one HTML file each, that loads nothing.

python report.py runs/NAME          # writes runs/NAME/report.html

train.py does the same at the end of a run.
"""

from pathlib import Path
from typing import Literal

from analysis.loading import settle_device
from analysis.report import evaluate_run, read_run, write_report
from common import cli
from common.files import expanded


def report(
    runs: list[str],
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    data_dir: str | None = None,
) -> list[Path]:
    """Write the report of finished runs.

    Args:
        runs: Folders of runs, such as runs/NAME.
        device: Where to look at the test images; auto takes a GPU where there is one.
        data_dir: Folder of the images; null for that of the training.

    Returns:
        The HTML file of each.

    Raises:
        InputError: A run is not finished, or something it needs cannot be read.
    """
    place = settle_device(device)
    paths = []
    for folder in map(expanded, runs):
        run = read_run(folder, data_dir)
        paths.append(write_report(run, evaluate_run(run, place)))
        print(paths[-1], flush=True)
    return paths


def main() -> None:
    """The command line."""
    cli.run("report.py", report)


if __name__ == "__main__":
    main()
