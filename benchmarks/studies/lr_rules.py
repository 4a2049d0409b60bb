"""What different rules pick from the same LR range tests, those of `lr_stability.py`.

The rules of others are given the losses as their packages smooth them, and up to where
these would have stopped the test. `tables.py` writes the picks into the pages, and
`pictures.py` draws them.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning.tuner.lr_finder import _LRFinder

from benchmarks.rows import markdown
from benchmarks.studies.lr_stability import CURVES, Tests, read_tests
from training.lr_finder import RangeTest, smooth

BETA = 0.98  # of the running means of fast.ai and of Lightning


def until_diverged(losses: NDArray[np.float64], times: float) -> int:
    """Steps until a loss is so many times the least before it."""
    over = losses > times * np.minimum.accumulate(losses)
    return int(over.argmax()) if over.any() else len(losses)


def steepest_slope(test: RangeTest) -> float:
    """Where the loss falls fastest before its minimum, by the logarithm of the rate."""
    losses = smooth(test.losses)
    stop = max(2, int(losses.argmin()) + 1)
    slope = np.gradient(losses[:stop], np.log(test.lrs[:stop]))
    return test.lrs[int(slope.argmin())]


def tenth_of_minimum(test: RangeTest) -> float:
    """A tenth of the rate at which the smoothed loss is least."""
    return test.lrs[int(smooth(test.losses).argmin())] / 10


def fastai_valley(test: RangeTest) -> float:
    """Past the middle of the longest falling subsequence of losses.

    So does `valley` of fast.ai's callback/schedule.py, its default; `lr_find` gives it
    neither the first tenth of the test nor the last five steps.
    """
    losses = pd.Series(test.losses).ewm(alpha=1 - BETA).mean().to_numpy()
    start = len(test.lrs) // 10
    losses = losses[: until_diverged(losses, 4)][start:-5]
    longest = np.ones(len(losses), dtype=int)  # of those that end here
    for end in range(1, len(losses)):
        higher = losses[:end] > losses[end]
        longest[end] += longest[:end][higher].max(initial=0)
    end = int(longest.argmax())
    length = int(longest[end])
    third = length / 3
    return test.lrs[start + max(0, end - length + int(third) + int(third / 2))]


def torch_lr_finder(test: RangeTest) -> float:
    """The steepest step of the package's running mean, without its two ends.

    So does `LRFinder.plot` of torch-lr-finder, with its defaults.
    """
    losses = pd.Series(test.losses).ewm(alpha=0.05, adjust=False).mean().to_numpy()
    losses = losses[: until_diverged(losses, 5)]
    return test.lrs[10 + int(np.gradient(losses[10:-5]).argmin())]


def lightning(test: RangeTest) -> float:
    """What Lightning's own rule picks, which takes slopes by the rate itself."""
    means = pd.Series(test.losses).ewm(alpha=1 - BETA).mean().to_numpy()
    steps = np.arange(1, len(means) + 1)
    # It takes out the bias of one step more than there were.
    smoothed = means * (1 - BETA**steps) / (1 - BETA ** (steps + 1))
    stop = until_diverged(smoothed, 4)
    finder = _LRFinder("exponential", test.lrs[0], test.lrs[-1], len(test.lrs))
    finder.results = {"lr": test.lrs[:stop], "loss": smoothed[:stop].tolist()}
    suggestion = finder.suggestion()
    assert suggestion is not None
    return suggestion


RULES: dict[str, Callable[[RangeTest], float]] = {
    "middle of the valley (`--lr auto`)": lambda test: test.lr,
    "tenth of the minimum": tenth_of_minimum,
    "steepest slope, log scale": steepest_slope,
    "fast.ai's valley": fastai_valley,
    "torch-lr-finder": torch_lr_finder,
    "Lightning's `suggestion()`": lightning,
}


def picks_table() -> str:
    """A row a rule, a column a recipe and batch size: range of picks, max / min."""
    columns: dict[str, list[str]] = {"rule": [*RULES]}
    for (recipe, batch_size), group in read_tests(CURVES).items():
        column = columns.setdefault(f"{recipe}.yaml, {batch_size}", [])
        for rule in RULES.values():
            picks = [rule(test) for test in group]
            low, high = min(picks), max(picks)
            column.append(f"{low:.2g} to {high:.2g} ({high / low:.2g})")
    return markdown(pd.DataFrame(columns))


def suggestions_table() -> str:
    """A row a recipe and batch size: our picks and Lightning's suggestions."""
    rows = []
    for (recipe, batch_size), group in read_tests(CURVES).items():
        ours = [test.lr for test in group]
        theirs = [float(f"{lightning(test):.2g}") for test in group]
        rows.append(
            {
                "recipe": f"`{recipe}.yaml`",
                "batch size": batch_size,
                "picks": f"{min(ours):.4f} to {max(ours):.4f}",
                "Lightning's suggestions": f"{min(theirs):.7f} to {max(theirs):.6f}",
            }
        )
    return markdown(pd.DataFrame(rows))


def picks_figure(tests: Tests) -> Figure:
    """The picks of every rule: a point a range test."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, ((recipe, batch_size), group) in enumerate(tests.items()):
        label = f"{recipe}.yaml, batch size {batch_size}"
        offset = 0.6 * (number / len(tests) - 0.5)
        for row, rule in enumerate(RULES.values()):
            lrs = [rule(test) for test in group]
            heights = np.full(len(lrs), row + offset)
            axes.semilogx(lrs, heights, f"C{number}o", alpha=0.7, label=label)
            label = ""
    names = [name.replace("`", "") for name in RULES]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("max learning rate picked")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    return figure
