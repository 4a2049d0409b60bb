"""Write the report of a finished run, or compare several: a page that loads nothing.

python report.py runs/NAME             # writes runs/NAME/report.html
python report.py runs/A runs/B ...     # writes runs/comparison.html

train.py writes the first at the end of a run.
"""

from pathlib import Path
from typing import Literal

from analysis.comparison import write_comparison
from analysis.evaluation import evaluate_images
from analysis.finished_run import RECORDS, open_run, read_run
from analysis.loading import settle_device
from analysis.report import write_report
from common import cli
from common.files import check_output, expanded


def report(
    runs: list[str],
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    data_dir: str | None = None,
    output: str | None = None,
    public: bool = False,
) -> Path:
    """Write the report of a finished run, or a page that compares several.

    Args:
        runs: Folders of runs, such as runs/NAME; several are compared.
        device: Where to look at the test images; auto takes a GPU where there is one.
        data_dir: Folder of the images; null for that of the training.
        output: The HTML file; null for report.html in the run's folder, or for
            comparison.html beside the folder of the first run.
        public: Leave out what is private: images of the data set, which drawings
            replace, and folders of this machine.

    Returns:
        The HTML file.

    Raises:
        InputError: A run is not finished, or something it needs cannot be read.
    """
    paths = [expanded(run) for run in runs]
    # `runs/*` also names the page of before, and what loggers write there.
    paths = [path for path in paths if not path.is_file()] or paths
    # Each once, as `runs/best runs/*` names one twice.
    named = {path.resolve(): path for path in paths}
    folders = [
        resolved if path.name in ("", "..") else path
        for resolved, path in named.items()
    ]
    path = None if output is None else expanded(output)
    if path is not None:
        check_output(path)
    if len(folders) > 1:
        page = write_comparison(
            [read_run(folder, files=RECORDS) for folder in folders],
            path or folders[0].parent / "comparison.html",
            public=public,
        )
    else:
        place = settle_device(device)
        run = read_run(folders[0], data_dir)
        model, images = open_run(run)
        evaluation = evaluate_images(model.to(place), *images.test_set)
        page = write_report(run, evaluation, images, path, public=public)
    print(page, flush=True)
    return page


def main() -> None:
    """The command line."""
    cli.run("report.py", report)


if __name__ == "__main__":
    main()
