"""Two recipes compared: how far apart, and whether by chance."""

from pathlib import Path

import pytest

from benchmarks.compare import compare, comparison, paired, student, welch
from common.errors import InputError
from record import runs_of, write_runs


def test_students_distribution_is_that_of_the_printed_tables() -> None:
    for freedom, t in ((2, 4.302653), (5, 2.570582), (10, 2.228139), (98, 1.984467)):
        assert student(t, freedom) == pytest.approx(0.05, abs=1e-6)
    assert student(0, 7.5) == 1
    assert student(9.924843, 2) == pytest.approx(0.01, abs=1e-6)


def test_welch_is_that_of_scipy() -> None:
    first = [0.9501, 0.9512, 0.9490, 0.9507, 0.9498]
    second = [0.9520, 0.9533, 0.9509]
    # scipy.stats.ttest_ind(first, second, equal_var=False) of SciPy 1.17.1
    assert welch(first, second) == pytest.approx(0.08878484906, rel=1e-6)
    assert welch(second, first) == welch(first, second)
    assert welch([1, 1, 1], [1, 1, 1]) == 1
    assert welch([1, 1, 1], [2, 2, 2]) == 0


def test_paired_is_students_test_of_the_mean_difference() -> None:
    # mean 2, deviation 1, so t = 2 sqrt(3); with two degrees of freedom
    # p = 1 - t / sqrt(2 + t ** 2)
    assert paired([1, 2, 3]) == pytest.approx(1 - (12 / 14) ** 0.5, rel=1e-6)
    assert paired([-1, -2, -3]) == paired([1, 2, 3])
    assert paired([-1, 0, 1]) == 1
    assert paired([0, 0]) == 1
    assert paired([2, 2]) == 0


def test_two_recipes_are_compared_where_both_have_run() -> None:
    runs = runs_of("plain", [0.90, 0.91, 0.92]) + runs_of("new, 9", [0.93, 0.94, 0.95])
    runs += runs_of("new, 9", [0.99, 0.99, 0.99], device="GPU")
    head, line = comparison(runs, "plain", "new").splitlines()
    assert head == "plain -> new, 9"
    # t = 0.03 / sqrt(2 / 3 * 0.01 ** 2) = 3.674 with 4 degrees of freedom
    assert line == (
        "test accuracy: +3.00 points, p = 0.021, from 91.00 ± 1.00 % (90.00 to 92.00), "
        "n = 3, to 94.00 ± 1.00 % (93.00 to 95.00), n = 3; CPU, 32-true"
    )


def test_too_few_runs_and_unclear_names_are_refused() -> None:
    runs = runs_of("a 1", [0.90, 0.91, 0.92]) + runs_of("a 2", [0.93, 0.94])
    runs += runs_of("a 2", [0.95, 0.96, 0.97], device="GPU")
    with pytest.raises(InputError, match="at least 3 runs of both 'a 1' and 'a 2'"):
        comparison(runs, "a 1", "a 2")
    with pytest.raises(InputError, match="'a' is not the name of one recipe: a 1; a 2"):
        comparison(runs, "a", "a 2")
    with pytest.raises(InputError, match="'b' is not the name of one recipe: a 1; a 2"):
        comparison(runs, "a 1", "b")
    with pytest.raises(InputError, match=r"--runs no\.csv: no such file"):
        compare(["a 1", "a 2"], runs="no.csv")
    with pytest.raises(InputError, match="give the names of two recipes, got 3"):
        compare(["a", "b", "c"])


def test_the_command_reads_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    runs = runs_of("a 1", [0.90, 0.91, 0.92]) + runs_of("b", [0.93, 0.94, 0.95])
    write_runs(Path("runs.csv"), runs)
    compare(["a", "b"], runs="runs.csv")
    assert capsys.readouterr().out == f"{comparison(runs, 'a 1', 'b')}\n"
