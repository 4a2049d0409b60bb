"""Evaluation against numbers worked out by hand, and against torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from analysis.evaluation import (
    BINS,
    MISTAKES,
    Evaluation,
    calibrate,
    evaluate_images,
)
from analysis.explanation import layer_cam
from analysis.inference import predict_logits, predict_proba
from lightning_module import LitCustomResNet

CLASSES = ("ant", "bee", "cat")


def test_calibration_by_hand() -> None:
    confidence = torch.tensor([0.4, 0.45, 0.6, 0.9, 1.0])
    correct = torch.tensor([False, True, True, True, True])
    found = calibrate(confidence, correct, bins=2)
    assert found.counts.tolist() == [2, 3]
    assert found.confidence.tolist() == pytest.approx([0.425, 2.5 / 3])
    assert found.accuracy.tolist() == [0.5, 1]
    assert found.ece == pytest.approx((2 * 0.075 + 3 * 0.5 / 3) / 5)


def test_an_image_on_an_edge_is_in_the_lower_bin() -> None:
    found = calibrate(torch.tensor([0.5, 1.0]), torch.tensor([True, True]), bins=2)
    assert found.counts.tolist() == [1, 1]


def test_calibration_agrees_with_torchmetrics() -> None:
    torch.manual_seed(0)
    scores, labels = 3 * torch.randn(500, 10), torch.randint(10, (500,))
    confidence, said = scores.softmax(dim=1).max(dim=1)
    theirs = multiclass_calibration_error(scores, labels, 10, n_bins=BINS)
    ours = calibrate(confidence, said == labels)
    assert ours.counts.sum() == 500
    assert ours.ece == pytest.approx(theirs.item(), rel=1e-5)


def test_an_evaluation_is_what_the_network_predicts() -> None:
    torch.manual_seed(0)
    module = LitCustomResNet(CLASSES, (0.5,) * 3, (0.2,) * 3, lr=0.01, base_width=4)
    model = module.eval().requires_grad_(False)
    images = torch.randint(256, (60, 32, 32, 3), dtype=torch.uint8)
    labels = torch.arange(60) % 3
    found = evaluate_images(model, images, labels)
    scores = predict_logits(model, images.permute(0, 3, 1, 2))
    assert torch.equal(found.counts, multiclass_confusion_matrix(scores, labels, 3))
    said = scores.argmax(dim=1)
    accuracy = found.calibration.accuracy @ found.calibration.counts.double() / 60
    assert accuracy == pytest.approx((said == labels).double().mean().item())

    assert len(found.mistakes) == MISTAKES
    sure = [mistake.probability for mistake in found.mistakes]
    wrong = predict_proba(model, images.permute(0, 3, 1, 2)).amax(dim=1)[said != labels]
    assert sure == pytest.approx(wrong.sort(descending=True).values[:MISTAKES].tolist())
    for mistake in found.mistakes:
        [place] = (images == mistake.image).all(dim=(1, 2, 3)).nonzero().flatten()
        assert mistake.predicted == CLASSES[said[place]]
        assert mistake.true == CLASSES[labels[place]]
        heat = layer_cam(model, mistake.image.permute(2, 0, 1)[None], said[place, None])
        torch.testing.assert_close(mistake.heat, heat[0])


def test_precision_recall_and_confused_pairs_by_hand() -> None:
    counts = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    calibration = calibrate(torch.tensor([0.5]), torch.tensor([True]))
    found = Evaluation(CLASSES, counts, calibration, [])
    assert found.class_results() == [
        ("ant", 8, 6 / 7, 6 / 8),
        ("bee", 4, 3 / 5, 3 / 4),
        ("cat", 0, None, None),
    ]
    assert found.confused_pairs(5) == [
        ("ant", "bee", 2, 1 / 4),
        ("bee", "ant", 1, 1 / 4),
    ]
    assert found.confused_pairs(1) == [("ant", "bee", 2, 1 / 4)]


def test_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.evaluation.layer_cam", None)  # has nothing to do
    module = LitCustomResNet(CLASSES, (0.5,) * 3, (0.2,) * 3, lr=0.01, base_width=4)
    model = module.eval().requires_grad_(False)
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    said = predict_logits(model, images.permute(0, 3, 1, 2)).argmax(dim=1)
    found = evaluate_images(model, images, said)
    assert found.mistakes == []
    assert found.counts.diag().sum() == 4
