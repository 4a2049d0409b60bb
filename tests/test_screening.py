"""Designs of many changes at once: their rows, what trains one, and what they show."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.nn import functional as F

from benchmarks import plain_training
from benchmarks.choose_levels import choose_levels, flags
from benchmarks.factorial import design, effects, lower
from benchmarks.plain_training import Training, best_loss, build_net, jitter, mix
from benchmarks.recipes import FLAGS
from benchmarks.rows import add_row, read_rows
from benchmarks.studies import last_epochs, screening
from common.errors import InputError
from datamodule import CIFAR10DataModule
from run_files import assert_same


@pytest.mark.parametrize("count", [7, 11, 14, 19, 23])
def test_no_factor_is_mixed_with_another_nor_with_a_pair(count: int) -> None:
    factors = {f"factor {number}": (-1.0, 1.0) for number in range(count)}
    levels = [[*row.values()] for row in design(factors)]
    whole = torch.tensor(levels, dtype=torch.float64)
    half = whole[: len(whole) // 2]
    assert torch.equal(half.T @ half, len(half) * torch.eye(count).double())
    assert torch.equal(half.sum(dim=0), torch.zeros(count))
    pairs = whole[:, :, None] * whole[:, None, :]
    assert (torch.einsum("rf,rij->fij", whole, pairs) == 0).all()


def row_of(**levels: Any) -> dict[str, Any]:
    return lower(screening.FIRST) | screening.USUAL | {"seed": 0} | levels


def test_a_row_starts_as_it_says() -> None:
    row = row_of(dirac=True, residual_gain=0.2, norm_momentum=0.3, whiten=True)
    images = torch.randn(20, 3, 32, 32)
    net = build_net(row, images, 64)
    maps = torch.randn(2, 64, 8, 8)
    layer: Any = net.layer1.get_submodule("0")
    assert torch.allclose(layer(maps)[:, :64], maps, atol=1e-6)
    norm: Any = net.residual3.get_submodule("1.1")
    assert norm.weight.unique().tolist() == pytest.approx([0.2])
    assert norm.momentum == 0.3
    assert sum(weight.numel() for weight in net.parameters()) == 6_573_120
    first: Any = net.prep.get_submodule("0")
    assert torch.equal(first.weight[:27], -first.weight[27:54])
    other: Any = build_net(row_of(), images, 64).prep.get_submodule("0")
    assert not torch.equal(other.weight[:27], -other.weight[27:54])


def test_features_and_branches_are_zero_at_random_in_training() -> None:
    net = build_net(row_of(dropout=0.25, drop_path=0.5), torch.randn(20, 3, 32, 32), 64)
    features = torch.ones(100, 512)
    net.fc.weight.data.fill_(1 / 512)
    kept = net.fc(features).mean().item()  # those that stay count more
    assert kept == pytest.approx(1.0, abs=0.02)
    net.fc.weight.data[:, 1:] = 0.0
    zero = (net.fc(features) == 0).all(dim=1).float().mean().item()
    assert zero == pytest.approx(0.25, abs=0.15)
    maps = torch.randn(100, 512, 3, 3)
    dropped = (net.residual3(maps) == 0).flatten(1).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.2)
    net.eval()
    assert not (net.residual3(maps) == 0).flatten(1).all(dim=1).any()
    assert torch.equal(net.fc(features), features @ net.fc.weight.T)


def test_boxes_come_from_the_image_whose_label_is_given() -> None:
    labels = torch.arange(8)
    images = labels.float().view(8, 1, 1, 1).expand(8, 3, 32, 32)
    generator = torch.Generator().manual_seed(3)
    row = row_of(cutmix=1.0)
    mixed, others, share = mix(images, labels, row, generator)
    assert 0 < share < 1
    for image, label, other in zip(mixed, labels, others, strict=True):
        foreign = (image == other).float().mean().item()
        assert foreign == pytest.approx(1.0 if label == other else share)


def test_mixup_adds_light_of_the_image_whose_label_is_given() -> None:
    labels = torch.arange(8)
    images = labels.float().view(8, 1, 1, 1).expand(8, 3, 32, 32)
    generator = torch.Generator().manual_seed(3)
    mixed, others, share = mix(images, labels, row_of(mixup=1.0), generator)
    assert 0 < share < 1
    assert torch.allclose(mixed[:, 0, 0, 0], (1 - share) * labels + share * others)


def test_batches_are_mixed_as_often_as_the_row_says() -> None:
    labels = torch.arange(8)
    images = labels.float().view(8, 1, 1, 1).expand(8, 3, 32, 32)
    generator, kinds = torch.Generator().manual_seed(0), []
    for _ in range(400):
        row = row_of(cutmix=0.25, mixup=0.5)
        mixed, _, share = mix(images, labels, row, generator)
        flat = (mixed == mixed[:, :1, :1, :1]).all()
        kinds.append("none" if not share else "mixup" if flat else "cutmix")
    assert kinds.count("none") == pytest.approx(100, abs=35)
    assert kinds.count("cutmix") == pytest.approx(100, abs=35)


def test_jitter_changes_contrast_and_brightness_within_its_bounds() -> None:
    images = torch.randn(100, 3, 32, 32)
    changed = jitter(images, 0.15, torch.Generator().manual_seed(0))
    gain = changed.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    shift = changed.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
    assert 0.85 < gain.min() < 0.88 < 1.12 < gain.max() < 1.15
    assert -0.3 < shift.min() < -0.25 < 0.25 < shift.max() < 0.3
    assert jitter(images, 0.0, torch.Generator()) is images


def test_the_best_loss_does_not_depend_on_the_scale() -> None:
    torch.manual_seed(0)
    labels = torch.randint(10, (500,))
    scores = torch.randn(500, 10) + 2 * F.one_hot(labels, 10)
    best = best_loss(scores, labels, 0.0)
    assert best < F.cross_entropy(scores, labels)
    assert best_loss(scores / 4, labels, 0.0) == pytest.approx(best, abs=1e-4)


def test_the_best_loss_does_not_depend_on_smoothing() -> None:
    torch.manual_seed(0)
    labels = torch.randint(10, (500,))
    scores = torch.randn(500, 10).double() + 2 * F.one_hot(labels, 10)
    best = best_loss(scores, labels, 0.0)
    smoothed = (0.8 * scores.softmax(1) + 0.02).log()
    assert best_loss(smoothed, labels, 0.2) == pytest.approx(best, abs=1e-6)
    assert best_loss(smoothed, labels, 0.0) > best + 1e-3


@pytest.fixture
def small_study(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a screening that takes seconds."""
    monkeypatch.setitem(screening.FIRST, "batch_size", (32, 16))
    monkeypatch.setitem(screening.THIRD, "norm_batch", (0, 8))
    monkeypatch.setattr(plain_training, "LRS", {32: 0.01, 16: 0.01})
    folder = {"data_dir": str(image_folder), "val_size": 20}
    return {"epochs": 2, "base_width": 4, **folder}


def test_rows_are_trained_once(
    small_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    screening.screening(["first"], "rows.csv", [0, 21], **small_study)
    rows = read_rows(Path("rows.csv"))
    assert rows["row"].tolist() == [0, 21]
    assert rows["val/loss"].nunique() == rows["jpeg/loss"].nunique() == 2
    screening.screening(["first"], "again.csv", [21], **small_study)
    assert read_rows(Path("again.csv"))["val/loss"][0] == rows["val/loss"][1]
    monkeypatch.delattr(Training, "train")
    screening.screening(["first"], "rows.csv", [0, 21], **small_study)
    longer = small_study | {"epochs": 3}
    with pytest.raises(InputError, match=r"such rows with epochs 2, not 3"):
        screening.screening(["first"], "rows.csv", [1], **longer)
    others = small_study | {"data": "synthetic"}
    with pytest.raises(InputError, match=r"such rows with images [0-9a-f]+"):
        screening.screening(["first"], "rows.csv", [1], **others)
    twice = {str(column): cell for column, cell in rows.iloc[1].items()}
    add_row(Path("rows.csv"), twice)  # of a process beside
    assert len(screening.read_designs(Path("rows.csv"), ["first"])) == 2
    with pytest.raises(InputError, match=r"--rows must be from 0 to 39, got 40"):
        screening.screening(["first"], "rows.csv", [40], **small_study)
    with pytest.raises(InputError, match="sixth is no design; give one of first"):
        screening.screening(["sixth"], "rows.csv", **small_study)


def test_what_differs_in_a_row_differs_in_its_training(
    small_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each factor changes the result, so none is left out by mistake."""
    losses = {}
    factors = screening.FIRST | screening.SECOND | screening.THIRD
    factors = screening.FOURTH | factors  # of one in several, the first upper level
    for name, (_, upper) in {"none": (0, 0), **factors}.items():
        base = row_of(batch_size=32, sam=0.05) | (
            {} if name == "none" else {name: upper}
        )
        study = screening.Study(base, {})
        monkeypatch.setitem(screening.STUDIES, "one", study)
        monkeypatch.setattr(screening, "design", lambda _: [{}])
        file = Path(f"{name}.csv")
        screening.screening(["one"], str(file), **small_study)
        losses[name] = read_rows(file)["val/loss"][0]
    assert len({*losses.values()}) == len(factors) + 1, losses


def test_branches_go_on_from_one_trunk(
    small_study: dict[str, Any],
    training: Callable[..., Training],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(last_epochs.BEST, "batch_size", 32)
    plain, sharp = "as the recipe is", "SAM, radius 0.2"
    few = small_study | {"epochs": 3, "folder": "kept", "output": "rows.csv"}
    last_epochs.last_epochs(branches=[plain], **few)
    # The trunk and a branch without a change are a training from its start.
    whole = training(**last_epochs.BEST)
    whole.train()
    expected = whole.net.state_dict()
    assert_same(torch.load("kept/branch_0_0.pt")["net"], dict(expected))

    trained: list[int] = []
    train_epoch = Training.train_epoch

    def note(self: Training, epoch: int) -> None:
        trained.append(epoch)
        train_epoch(self, epoch)

    monkeypatch.setattr(Training, "train_epoch", note)
    last_epochs.last_epochs(branches=[plain, sharp], **few)
    assert trained == [2]  # neither the trunk nor what is on record
    assert read_rows(Path("rows.csv"))["branch"].tolist() == [plain, sharp]
    weight = torch.load("kept/branch_4_0.pt")["net"]["fc.weight"]
    assert not torch.allclose(weight, expected["fc.weight"])
    assert last_epochs.table(Path("rows.csv")).count("SAM, radius 0.2") == 1
    with pytest.raises(InputError, match="--branches: other is none; give some of as"):
        last_epochs.last_epochs(branches=["other"], **few)
    longer = few | {"epochs": 4}
    with pytest.raises(
        InputError, match=r"rows\.csv has such rows with epochs 3, not 4"
    ):
        last_epochs.last_epochs(**longer)
    with pytest.raises(
        InputError, match="--folder kept has a training with epochs 3, not 4"
    ):
        last_epochs.last_epochs(**longer | {"output": "others.csv"})


@pytest.fixture
def training(small_study: dict[str, Any]) -> Callable[..., Training]:
    """Makes the training of a row, of three short epochs."""
    folder = small_study["data_dir"]
    images = CIFAR10DataModule("folder", folder, batch_size=1, val_size=20)
    images.prepare_data()
    images.setup()

    def make(**levels: Any) -> Training:
        return Training(row_of(**levels), images, 3, 4, torch.device("cpu"))

    return make


def test_gradients_are_those_where_the_loss_is_worst_nearby(
    training: Callable[..., Training],
) -> None:
    trained = training(sam=0.3)
    weights = [*trained.net.parameters()]
    before = [weight.detach().clone() for weight in weights]

    def loss() -> torch.Tensor:
        return torch.stack([(weight**4).sum() / 4 for weight in weights]).sum()

    loss().backward()
    trained._look_nearby(loss)
    cubes = [weight**3 for weight in before]
    norm = torch.cat([cube.flatten() for cube in cubes]).norm()
    for weight, old, cube in zip(weights, before, cubes, strict=True):
        assert torch.equal(weight, old)
        nearby = (old + 0.3 * cube / norm) ** 3
        assert weight.grad is not None
        assert torch.allclose(weight.grad, nearby, atol=1e-6)


def test_what_is_looked_at_nearby_leaves_the_statistics_alone(
    training: Callable[..., Training],
) -> None:
    found = []
    for radius in (0.0, 0.3):
        trained = training(sam=radius, sam_share=1.0, norm_momentum=0.2)
        raw, labels = next(iter(trained.batches))
        trained.net.train()
        trained._step(raw, labels, torch.Generator())
        found.append(trained.net.get_buffer("prep.1.running_mean"))
        assert trained.net.get_submodule("prep.1").momentum == 0.2
    assert torch.equal(*found)


def test_only_the_last_steps_look_nearby(
    training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, looks = training(sam=0.3, sam_share=0.25), list[Any]()
    monkeypatch.setattr(trained, "_look_nearby", looks.append)
    trained.train()
    assert len(looks) == pytest.approx(0.25 * 3 * len(trained.batches), abs=0.5)
    assert looks


def test_the_last_epochs_have_no_cutout(
    training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, sides = training(uncut_epochs=1, cutout=6), []

    def note(*_: Any) -> None:
        sides.append(trained.batches.augmentation.cutout)

    monkeypatch.setattr(trained, "_step", note)
    trained.train()
    per_epoch = len(trained.batches)
    assert sides == [6] * 2 * per_epoch + [0] * per_epoch


def planted(rows: range, noise: float) -> pd.DataFrame:
    """Losses that two factors decide, and a little chance."""
    chance = np.random.default_rng(0).normal(0, noise, len(rows))
    losses = []
    for number, extra in zip(rows, chance, strict=True):
        row = design(screening.FIRST)[number]
        helped = 0.02 * (row["beta2"] == 0.99) - 0.05 * row["dirac"]
        losses.append(0.3 + helped + extra)
    return pd.DataFrame({"row": [*rows], "val/loss": losses})


def test_effects_are_found_again() -> None:
    rows = planted(range(40), noise=0.001)
    found = effects(rows, "val/loss", screening.FIRST)
    assert found["effect"]["beta2"] == pytest.approx(0.02, abs=0.002)
    assert found["effect"]["dirac"] == pytest.approx(-0.05, abs=0.002)
    assert (found["p"] < 0.005).sum() == 2
    # Of the mean of half of the rows less that of the others.
    assert found["error"]["dirac"] == pytest.approx(0.001 * 2 / 40**0.5, rel=0.6)


def test_the_effects_are_those_of_least_squares() -> None:
    rows = planted(range(40), noise=0.01)
    upper = [design(screening.FIRST)[number]["dirac"] for number in rows["row"]]
    means = rows["val/loss"].groupby(upper).mean()
    found = effects(rows, "val/loss", screening.FIRST)["effect"]["dirac"]
    assert found == pytest.approx(means[True] - means[False])


def test_too_few_rows_say_nothing(tmp_path: Path) -> None:
    record = tmp_path / "rows.csv"
    losses = planted(range(40), noise=0.001)["val/loss"]
    for number, loss in enumerate(losses):
        row = {"design": "first", "row": number, "seed": 0, "epochs": 24}
        row |= {"val/loss_tta": loss, "jpeg/acc": loss, "device": "a CPU"}
        add_row(record, row | {"val/loss": loss, "val/acc": 1 - loss})
        if number == 38:
            assert screening.read_finished(record) == {}
    text = screening.tables(record)
    assert text.startswith("The first design, 40 rows of 24 epochs, a CPU; mean acc")
    assert "| `dirac`" in text
    assert re.search(r"`dirac` .*\| -(49\.|50\.)", text)
    assert screening.figure(record) is not None
    assert screening.figure(tmp_path / "none.csv") is None


def test_the_recipe_has_the_levels_that_are_ahead(capsys: Any) -> None:
    """What raises accuracy, or lowers the loss at no cost of accuracy."""
    gains = {"whiten": (0.01, 0.0), "weight_decay": (0.0, -0.02), "sam": (0.01, 0.0)}
    gains |= {"residual_gain": (0.01, -0.02), "cutout": (0.01, 0.02)}
    chance = np.random.default_rng(0).normal(0, 1e-3, (40, 2))
    for number, row in enumerate(design(screening.FIRST)):
        upper = {name: row[name] == screening.FIRST[name][1] for name in row}
        acc, loss = chance[number] + sum(
            np.array(gain) * upper.get(name, False) for name, gain in gains.items()
        )
        found = {"val/acc": acc, "val/loss": loss}
        found |= {"val/acc_tta": acc + 0.1, "val/loss_tta": loss - 0.1}
        shape = {"row": number, "epochs": 16, "base_width": 8, "images": "some"}
        add_row(Path("rows.csv"), {"design": "first", "seed": 0, **shape, **found})
        if number == 38:
            with pytest.raises(InputError, match="does not hold all of the first des"):
                choose_levels("first", "new.yaml", rows="rows.csv")
    Path("old.yaml").write_text("data: synthetic\nlr: 0.5\nseed: 3\ncutout: 2\n")
    choose_levels("first", "out/new.yaml", "old.yaml", "rows.csv")
    chosen = yaml.safe_load(Path("out/new.yaml").read_text())
    lowest = lower(screening.FIRST)
    expected = {name: level for name, level in lowest.items() if name in FLAGS}
    expected |= {"data": "synthetic", "seed": 3, "max_epochs": 16, "base_width": 8}
    expected |= {"lr": 0.0035, "whiten": True, "weight_decay": 0.5}
    assert expected.items() <= chosen.items()
    assert "residual_gain" not in chosen
    said = "first design, 40 rows: whiten True weight_decay 0.5\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "own"),
    [("third", "fourth", {"sam": 0.1}), ("fourth", "fifth", {})],  # and without SAM
)
def test_a_design_goes_on_from_what_the_one_before_it_chose(
    before: str, after: str, own: dict[str, Any]
) -> None:
    choose_levels(before, "new.yaml")
    chosen = yaml.safe_load(Path("new.yaml").read_text())
    base, factors = screening.STUDIES[after]
    row = base | lower(factors) | own
    assert flags(row | {"epochs": 24, "base_width": 64}).items() <= chosen.items()
