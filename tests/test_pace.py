"""The pace of the training, measured small."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import noise, paces, step_profile
from benchmarks import pace as script
from benchmarks.pace import measure, pace, ratios, settle_steps
from benchmarks.paces import NoiseDataset, Setting, operations
from benchmarks.rows import RESULTS, read_rows
from benchmarks.step_profile import WARM_UP, StepProfiler, step_times
from common.errors import InputError
from machine import memory
from machine.provenance import PROJECT
from training import history

SMALL: dict[str, Any] = {"batch_size": 16, "precision": "32-true", "base_width": 4}
SETTING = Setting("cpu", "32-true", 16, 3, base_width=4, compile=False)


def tell(times: list[float]) -> Callable[[Any], float]:
    """A clock that tells these times."""
    return lambda _: times.pop(0)


def test_of_two_epochs_of_the_loop_the_second_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def now(_: Any) -> int:
        done.append("clock")
        return len(done)

    monkeypatch.setattr(paces, "now", now)
    assert paces.pace(lambda: done.append("step"), SETTING) == 3 * 16 / 4
    assert done == ["step"] * 3 + ["clock"] + ["step"] * 3 + ["clock"]


def test_of_two_epochs_of_the_trainer_the_second_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The training begins, then an epoch begins and ends, and another.
    monkeypatch.setattr(history, "now", tell([0, 0, 100, 100, 104]))
    assert paces.trainer_pace(SETTING) == 3 * 16 / 4


def test_a_profile_waits_for_the_device_only_at_both_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profiler = StepProfiler(SETTING, 4)
    monkeypatch.setattr(step_profile, "now", tell([0.5, 8.5]))
    monkeypatch.setattr("time.perf_counter", lambda: 1.0)
    for batch in range(WARM_UP + 5):
        profiler.on_train_batch_start(None, None, None, batch)
    profiler.on_train_epoch_end(None, None)
    assert profiler.seconds == [0.5, 1, 1, 1, 8.5]
    on_gpu = step_times(SETTING._replace(device="cuda"), profiler.seconds)
    assert on_gpu == {"ms a step": "2000.00, mean of 4 in a row", "images/s": "8"}
    on_cpu = step_times(SETTING, [0, 1, 3, 6])
    assert on_cpu["ms a step"] == "2000.0 (1000.0-3000.0), n = 3"


@pytest.mark.slow  # measures for a minute
def test_a_row_and_a_line_for_each_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results" / "pace.csv"
    pace(**SMALL, steps=2, repeats=2, output=str(file))
    [row] = read_rows(file).to_dict("records")
    assert row["batch_size"] == 16
    assert row["device"].startswith("cpu: ")
    number = r"\d+\.\d+"
    for name in ("trainer", "loop", "course", "limit"):
        interval = rf"({number}) \(({number})-({number})\)"
        found = re.fullmatch(interval, row[f"{name} images/s"])
        assert found is not None
        middle, low, high = map(float, found.groups())
        assert 0 < low <= middle <= high
    lines = capsys.readouterr().out.splitlines()
    for name in ("trainer/loop", "trainer/course", "trainer/limit"):
        assert f"ratio {name} {row[name]}" in lines
    loop, limit = (
        float(row[f"{name} images/s"].split()[0]) for name in ("loop", "limit")
    )
    assert loop < limit


def test_the_page_shows_the_profiles_on_record() -> None:
    text = (PROJECT / "docs" / "lab" / "speed.md").read_text(encoding="utf-8")
    steps = sorted(RESULTS.glob("2026-11-22_profile_cpu_512_*.md"))
    assert len(steps) == 3
    for step in steps:
        profile = step.read_text(encoding="utf-8")
        time = re.search(r"ms a step: (.+), n = 10", profile)
        pace = re.search(r"images/s: (\d+) ", profile)
        assert time is not None
        assert pace is not None
        assert f"| {time[1]} | {pace[1]} | " in text
        assert f"results/{step.name})" in text


class Here:
    """A pool that works in this process."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., float], setting: Setting) -> Any:
        """Do it at once."""
        result = function(setting)
        return SimpleNamespace(result=lambda: result)


def test_they_take_turns_and_the_first_round_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def way(name: str) -> Callable[[Setting], float]:
        def take_turn(_: Setting) -> float:
            order.append(name)
            return float(len(order))

        return take_turn

    monkeypatch.setattr(script, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(script, "PACES", {name: way(name) for name in "ab"})
    assert measure(SETTING, 2, ("a", "b")) == {"a": [3, 5], "b": [4, 6]}
    assert order == [*"ababab"]


def test_a_round_is_an_epoch_at_most_and_a_step_at_least() -> None:
    def steps(asked: int | None, batch_size: int, device: str = "cpu") -> int:
        return settle_steps(asked, batch_size, device, profiled=False)

    assert [steps(None, size) for size in (512, 4096)] == [4, 1]
    assert steps(None, 512, "cuda") == steps(97, 512) == 97  # 50,000 / 512
    with pytest.raises(InputError, match="98 batches are needed of 50000 images"):
        steps(98, 512)
    profiled = settle_steps(None, 512, "cpu", profiled=True)
    assert profiled == WARM_UP + 2 * WARM_UP


@pytest.mark.parametrize(
    ("device", "keep", "times"),
    [("cpu", True, 1), ("cpu", False, 0), ("cuda", True, 0)],
)
def test_memory_is_kept_on_a_cpu_and_when_asked(
    device: str, keep: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: calls.append(True))
    noise.prepare(device, keep_memory=keep)
    assert len(calls) == times


def test_ratios_are_those_of_the_same_round() -> None:
    paces = {"trainer": [10.0, 30.0, 20.0], "loop": [20.0, 30.0, 10.0]}
    assert ratios(paces) == {"trainer/loop": [0.5, 1.0, 2.0]}


def test_operations_of_the_network() -> None:
    # Multiplications and additions of an image: 0.6217 billion forward; backward twice
    # as many, but the first convolution needs no gradient of its input.
    assert operations(64) == pytest.approx(1.8615e9, rel=1e-4)


def test_course_way_gives_normalised_images() -> None:
    image, label = NoiseDataset()[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert -1 <= image.min() < image.max() <= 1
    assert 0 <= label < 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"repeats": 0}, "must be at least 1"),
        ({"steps": 0}, "must be at least 1"),
        (
            {"batch_size": 50_001},
            "--batch_size 50001: 1 batches are needed of 50000 im",
        ),
        ({"precision": "64-true"}, "--precision must be auto, 32-true, bf16-mixed"),
    ],
)
def test_wrong_flags(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pace(**(SMALL | flags))


def test_profile_names_the_operations(tmp_path: Path) -> None:
    page = tmp_path / "results" / "profile.md"
    pace(**SMALL, steps=2, profile=str(page))
    text = page.read_text()
    assert re.search(r"ms a step: \d+\.\d \(\d+\.\d-\d+\.\d\), n = 2", text)
    shares = [float(share) for share in re.findall(r"\| (\d+\.\d) % +\|", text)]
    assert len(shares) == 20
    assert 50 < sum(shares) <= 100
    assert re.search(r"`aten::convolution_backward` +\| 8 +\|", text)
    with pytest.raises(InputError, match="--batch_size 16: 6016 batches are needed"):
        pace(**SMALL, steps=3000, profile=str(page))
