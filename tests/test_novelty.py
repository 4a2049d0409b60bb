"""How new an image is to a network, from what a training has left in its checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import predict
from analysis.inference import Seen, novelty_of, see, see_views
from analysis.loading import WEIGHTS, load_model, read_trained
from analysis.novelty import entropy, novelty
from datamodule import CIFAR10DataModule
from export import export
from images.synthetic import draw_shapes
from lightning_module import Features, LitCustomResNet
from networks import collected_features
from run_files import BEST, LAST
from training.checkpoint import AtomicCheckpointIO
from training.features import SAMPLE, FeaturesInCheckpoint, measure_features
from training.resume import read_checkpoint

Train = Callable[..., dict[str, Any]]


@pytest.fixture
def model() -> LitCustomResNet:
    module = LitCustomResNet("abc", (0.5,) * 3, (0.25,) * 3, 0.01, base_width=4)
    return module.eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def test_features_are_the_means_of_the_maps(model: LitCustomResNet) -> None:
    images, net = noise(5, 3, 32, 32), model.net
    x: Any = net.get_submodule("prep")(model.normalise(images))
    x = net.get_submodule("layer1")(x)
    maps = net.get_submodule("layer2")(x + net.get_submodule("residual1")(x))
    seen = see(model, images)
    torch.testing.assert_close(seen.features, maps.mean(dim=(2, 3)))
    torch.testing.assert_close(seen.logits, model(images))
    with collected_features(net) as found:
        model(images[:2])
        model(images[2:])
    torch.testing.assert_close(torch.cat(found), seen.features)
    model(images)
    assert len(found) == 2  # no more outside


def test_views_are_seen_one_by_one_and_mirrored(model: LitCustomResNet) -> None:
    views = noise(4, 2, 3, 32, 32)
    seen = see_views(model, views, mirrored=True)
    for number, images in enumerate(
        (views[:, 0], views[:, 1], views[:, 0].flip(3), views[:, 1].flip(3))
    ):
        alone = see(model, images)
        torch.testing.assert_close(seen.logits[:, number], alone.logits)
        torch.testing.assert_close(seen.features[:, number], alone.features)
    assert see_views(model, views, mirrored=False).logits.shape == (4, 2, 3)


def test_novelty_is_doubt_and_distance() -> None:
    even = [0.5, 0.5, 0, 0]
    shares = torch.tensor([[even, even], [[1.0, 0, 0, 0], even], [[1.0, 0, 0, 0]] * 2])
    features = torch.tensor(
        [[[1.0, 2.0]] * 2, [[1.0, 2.0], [4.0, 6.0]], [[1.0, 7.0]] * 2]
    )
    known: Features = {"mean": [1.0, 2.0], "variance": 10.0}
    # Entropies of log 2 and 0; squared distances, in units of the mean, of 0 and 2.5.
    doubt = math.log(2) / math.log(3)
    found = novelty(shares, features, known)
    assert found.tolist() == pytest.approx([doubt, (doubt + 1) / 2, 1])
    known["variance"] = 30  # all nearer than the mean, which is no reason for less
    found = novelty(shares, features, known)
    assert found.tolist() == pytest.approx([doubt, doubt / 2, 0])
    assert novelty(shares, features, None).tolist() == pytest.approx([1, 0.5, 0])


def test_entropy_is_that_of_each_row() -> None:
    shares = torch.tensor([[[0.7, 0.1, 0.1, 0.1], [0, 1.0, 0, 0]]])
    assert entropy(shares).tolist() == [[pytest.approx(0.940448), 0]]


def test_a_network_of_two_classes_can_know_none_of_them() -> None:
    shares = torch.tensor([[[0.6, 0.4]], [[0.75, 0.25]], [[0.95, 0.05]]])
    features: Features = {"mean": [0.0, 0.0], "variance": 1.0}
    for known in (None, features):
        found = novelty(shares, torch.zeros(3, 1, 2), known) < 1
        assert found.tolist() == [False, True, True]


def test_label_smoothing_is_no_doubt(model: LitCustomResNet) -> None:
    """What a network is taught for a sure image must not pass for an unknown one."""
    sure, leaning = [0.82] + 9 * [0.02], [0.31, 0.53] + 8 * [0.02]
    logits = torch.tensor([[sure], [leaning]]).log()
    seen, known = Seen(logits, torch.zeros(2, 1, 16)), {}
    for smoothing in (0.0, 0.2):
        model.hparams["label_smoothing"] = smoothing
        known[smoothing] = (novelty_of(model, seen) < 1).tolist()
    assert known == {0.0: [False, False], 0.2: [True, True]}


def test_measured_features_are_those_of_the_weights_that_are_given(
    model: LitCustomResNet,
) -> None:
    images = noise(40, 32, 32, 3)
    features = see(model, images.permute(0, 3, 1, 2)).features.double()
    mean = features.mean(dim=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for weight in model.parameters():
        weight.data.mul_(2)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_features(model, state, images)
    assert found["mean"] == pytest.approx(mean.tolist(), rel=1e-5)
    squares = (features - mean).square().sum(dim=1)
    assert found["variance"] == pytest.approx(squares.mean().item(), rel=1e-5)
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():  # nor the statistics
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_checkpoints_of_an_epoch_know_the_features(
    ema_decay: float, quick_train: Train, image_folder: Path
) -> None:
    quick_train(ema_decay=ema_decay, val_size=10)
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=8, val_size=10)
    data.setup()
    pixels = data.train_set[0]
    assert len(pixels) < SAMPLE
    for path in (LAST, BEST):
        model = load_model(path)
        expected = measure_features(model, model.state_dict(), pixels)
        assert model.features is not None
        assert model.features["mean"] == pytest.approx(expected["mean"], rel=1e-4)
        assert model.features["variance"] == pytest.approx(
            expected["variance"], rel=1e-4
        )


def test_checkpoints_within_an_epoch_need_none(
    model: LitCustomResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is measured once, though two files hold it."""
    measured: list[int] = []

    def measure(*_: Any) -> Any:
        measured.append(trainer.global_step)
        return {"mean": [], "variance": float(len(measured))}

    monkeypatch.setattr("training.features.measure_features", measure)
    callback = FeaturesInCheckpoint(noise(3, 32, 32, 3))
    trainer: Any = SimpleNamespace(num_training_batches=3)
    found = []
    for step in (3, 3, 4, 6):
        trainer.global_step = step
        checkpoint: dict[str, Any] = {"state_dict": {}}
        callback.on_save_checkpoint(trainer, model, checkpoint)
        found.append(checkpoint.get("features", {}).get("variance"))
    assert found == [1, 1, None, 2]
    assert measured == [3, 6]


def test_they_go_through_every_form_of_weights(quick_train: Train) -> None:
    quick_train(max_epochs=1)
    features = load_model(LAST).features
    assert features is not None
    export(format="safetensors", ckpt_path=str(LAST), output="a.safetensors")
    export(format="weights", ckpt_path="a.safetensors", output="b.ckpt")
    for name in ("a.safetensors", "b.ckpt"):
        assert load_model(name).features == features
    saved = read_checkpoint(LAST)
    del saved["features"]  # a checkpoint of before
    AtomicCheckpointIO().save_checkpoint(saved, "old.ckpt")
    export(format="safetensors", ckpt_path="old.ckpt", output="c.safetensors")
    assert "features" not in read_trained(Path("c.safetensors"))
    assert load_model("c.safetensors").features is None


def test_the_shipped_weights_mark_what_is_drawn_and_noise() -> None:
    """Entropy alone marks fewer of the drawn shapes."""
    drawn = draw_shapes(60, seed=3)[0].permute(0, 3, 1, 2)
    images = torch.cat([drawn, noise(60, 3, 32, 32)])[:, None]
    for path in (WEIGHTS, WEIGHTS.parent / "robust" / "robust.safetensors"):
        model = load_model(path)
        new = novelty_of(model, see_views(model, images, mirrored=True)) >= 1
        model.features = None
        unsure = novelty_of(model, see_views(model, images, mirrored=True)) >= 1
        assert new[60:].all()
        assert new[:60].sum() > unsure[:60].sum()


def test_predict_marks_what_is_unlike_the_training_images(
    quick_train: Train, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick_train(max_epochs=8, lr=0.02)
    Path("new").mkdir()
    for colour in ("white", "black", "yellow", "cyan", "magenta"):
        Image.new("RGB", (40, 30), colour).save(f"new/{colour}.png")
    capsys.readouterr()
    marked = {}
    for folder in ("new", str(image_folder / "test")):
        predict.predict([folder], str(LAST))
        marked[folder] = capsys.readouterr().out.count("probably none of the classes")
    assert marked["new"] == 5
    assert marked[str(image_folder / "test")] < 3  # of 30
