"""Two-level designs, in which every run says something of every factor.

In a design of Plackett and Burman (Biometrika 33, 1946) every factor is at its upper
level in half of the runs, and any two factors meet at all pairs of levels equally
often. So a few runs say as much of each factor as that many runs for it alone would.
The same runs with all levels turned round follow; with them no effect of a factor is
mixed with that of a pair.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import circulant

Factors = Mapping[str, tuple[Any, Any]]  # name: lower and upper level
Row = dict[str, Any]  # factor: its level

# First row of a design, by its number of runs: one more than it has columns.
GENERATORS = {
    8: "+++-+--",
    12: "++-+++---+-",
    20: "++--++++-+-+----++-",
    24: "+++++-+-++--++--+-+----",
}


def signs(factors: Factors) -> NDArray[np.float64]:
    """The design: 1 or -1 for each run and factor, first those of the half design."""
    size = min(size for size in GENERATORS if size > len(factors))
    first = [1.0 if sign == "+" else -1.0 for sign in GENERATORS[size]]
    half = np.vstack([circulant(first).T, -np.ones(size - 1)])[:, : len(factors)]
    return np.vstack([half, -half])


def design(factors: Factors) -> list[Row]:
    """The levels of all runs."""
    return [
        {
            name: levels[int(sign > 0)]
            for sign, (name, levels) in zip(run, factors.items(), strict=True)
        }
        for run in signs(factors)
    ]


def lower(factors: Factors) -> Row:
    """The lower level of every factor."""
    return {name: low for name, (low, _) in factors.items()}


def effects(rows: pd.DataFrame, response: str, factors: Factors) -> pd.DataFrame:
    """What the upper level of each factor adds to a response, by least squares.

    The standard error follows from what the effects leave unexplained.

    Args:
        rows: Those on record, more than there are factors and one; `row` is the number
            of a run of the design.
        response: A column of them.
        factors: Those of the design.

    Returns:
        A row a factor: `effect`, `error` and `p`, two-sided.
    """
    plan = np.column_stack(
        [np.ones(len(rows)), signs(factors)[rows["row"].to_numpy(dtype=int)]]
    )
    values = rows[response].to_numpy(dtype=float)
    halves, *_ = np.linalg.lstsq(plan, values)
    found = 2 * halves[1:]
    freedom = len(rows) - plan.shape[1]
    variance = np.square(values - plan @ halves).sum() / freedom
    errors = 2 * np.sqrt(variance * np.diag(np.linalg.inv(plan.T @ plan))[1:])
    p = 2 * stats.t.sf(np.abs(found) / errors, freedom)
    columns = {"effect": found, "error": errors, "p": p}
    return pd.DataFrame(columns, index=pd.Index(factors, name="factor"))
