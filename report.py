"""Write the report of finished runs: one HTML file each, that loads nothing.

python report.py runs/NAME          # writes runs/NAME/report.html

train.py does the same at the end of a run.
"""

from pathlib import Path
from typing import Literal

from components import cli
from components.inference import settle_device
from components.report import examine_run, read_run, write_report


def report(
    runs: list[str], device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
) -> list[Path]:
    """Write the report of finished runs.

    Args:
        runs: Folders of runs, such as runs/NAME.
        device: Where to look at the test images; auto takes a GPU where there is one.

    Returns:
        The HTML file of each.

    Raises:
        InputError: A run is not finished, or something it needs cannot be read.
    """
    place = settle_device(device)
    paths = []
    for folder in map(Path, runs):
        run = read_run(folder)
        paths.append(write_report(run, examine_run(run, place)))
        print(paths[-1], flush=True)
    return paths


def main() -> None:
    """The command line."""
    cli.run("report.py", report)


if __name__ == "__main__":
    main()
