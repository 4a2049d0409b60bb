"""How many operations a training step may have, on any machine."""

import pytest
import torch

from benchmarks.operations import PARTS, READS, TOTAL, Count, measure, operations


@pytest.mark.parametrize(("ema_decay", "most"), [(0.0, 120), (0.99, 125)])
def test_a_step_has_few_operations_and_waits_for_nothing(
    ema_decay: float, most: int
) -> None:
    found = measure("bf16-mixed", ema_decay)
    assert 100 < found[TOTAL] <= most
    assert found[READS] == 0
    assert all(found[part] > 0 for part in PARTS[:-1])
    assert found["callbacks"] == (2 if ema_decay else 0)


def test_views_are_left_out_and_reads_are_found() -> None:
    values = torch.arange(6.0)
    with Count() as count:
        count.part = "network"
        rows = values.view(2, 3).t()[0].detach()
        assert (count.counts.total(), count.reads) == (0, 0)
        total = (rows + 1).sum()
        assert (count.counts["network"], count.reads) == (2, 0)
        count.part = "callbacks"
        assert total.item() == 5
    assert (count.counts["callbacks"], count.reads) == (1, 1)


def test_rows_and_a_table(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    operations("32-true", label="as it is", output=f"{tmp_path}/operations.csv")
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("|")]
    assert lines[0].split("|")[-3:-1] == [f" {TOTAL}   ", f" {READS}   "]
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["no", "yes"]
