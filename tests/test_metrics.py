"""Metrics against torchmetrics and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch

from alenv.metrics import ECE_BINS, classification, classifications, confusion
from alenv.streams import Streams

NAMES = ["accuracy", "macro_f1", "balanced_accuracy", "nll", "ece"]


def case(name):
    """Logits and targets: every class occurs, some never do, only one does."""
    generator = Streams(0)("metrics")
    logits = 2 * torch.randn(200, 6, generator=generator)
    targets = torch.randint(0, 6, (200,), generator=generator)
    targets = torch.where(torch.rand(200, generator=generator) < 0.5, logits.argmax(1), targets)
    if name == "absent":  # class 5 is neither true nor predicted, class 4 is predicted but never true
        logits[:, 5] = -30
        targets = targets % 4
    if name == "one class":
        targets = torch.full((200,), 2)
    if name == "unpredicted":  # class 3 is true but never predicted
        logits[:, 3] = -30
    return logits, targets


CASES = ["all", "absent", "one class", "unpredicted"]


@pytest.mark.parametrize("name", CASES)
def test_metrics_agree_with_sklearn(name):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

    logits, targets = case(name)
    predictions, probs = logits.argmax(1), logits.double().softmax(1)
    found = classification(logits, targets)
    with warnings.catch_warnings():  # sklearn remarks on classes that are predicted but never true
        warnings.simplefilter("ignore", UserWarning)
        expected = {
            "accuracy": accuracy_score(targets, predictions),
            "macro_f1": f1_score(targets, predictions, average="macro"),
            "balanced_accuracy": balanced_accuracy_score(targets, predictions),
            "nll": log_loss(targets, probs / probs.sum(1, keepdim=True), labels=list(range(6))),
        }
    assert list(found) == NAMES
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


def test_metrics_agree_with_torchmetrics():
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_recall,
    )

    for name in CASES:
        logits, targets = case(name)
        found = classification(logits, targets)
        expected = {
            "accuracy": multiclass_accuracy(logits, targets, 6, average="micro"),
            "macro_f1": multiclass_f1_score(logits, targets, 6, average="macro"),
            "ece": multiclass_calibration_error(logits.softmax(1), targets, 6, n_bins=ECE_BINS, norm="l1"),
        }
        for key, value in expected.items():
            assert found[key] == pytest.approx(float(value), rel=1e-5, abs=1e-6), (name, key)
        recalls = multiclass_recall(logits, targets, 6, average="none")[targets.unique()]
        assert found["balanced_accuracy"] == pytest.approx(float(recalls.mean()), rel=1e-5), name
        table = confusion(logits.argmax(1), targets, 6)
        assert torch.equal(table.long(), multiclass_confusion_matrix(logits, targets, 6)), name


def test_a_model_has_the_same_numbers_alone_and_among_others():
    logits, targets = (torch.stack(parts) for parts in zip(*map(case, CASES), strict=True))
    groups = {"few": (0, 1), "rest": (2, 3, 4, 5)}
    for together, name in zip(classifications(logits, targets, groups), CASES, strict=True):
        assert together == classification(*case(name), groups)
    assert classifications(logits[:, :0], targets[:, :0]) == [{}] * 4


def test_confusion_counts_true_classes_in_rows():
    table = confusion(torch.tensor([1, 1, 2, 0]), torch.tensor([0, 0, 2, 1]), 3)
    assert table.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 1]]


def test_a_case_worked_out_by_hand():
    logits = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.8, 0.2]]).log()
    found = classification(logits, torch.tensor([0, 1, 1, 0]))
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["nll"] == pytest.approx(-(2 * math.log(0.8) + math.log(0.2) + math.log(0.6)) / 4)
    assert found["ece"] == pytest.approx(3 / 4 * abs(2 / 3 - 0.8) + 1 / 4 * abs(1 - 0.6), rel=1e-5)


def test_calibration_error_matches_a_loop_over_bins():
    logits, targets = case("all")
    probs = logits.double().softmax(1).numpy()
    confidence, right = probs.max(1), probs.argmax(1) == targets.numpy()
    error = 0.0
    for low in np.arange(ECE_BINS) / ECE_BINS:
        inside = (confidence > low) & (confidence <= low + 1 / ECE_BINS)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert classification(logits, targets)["ece"] == pytest.approx(error)


def test_calibration_errors_of_neighbouring_bins_do_not_cancel():
    logits = torch.tensor([[0.95, 0.05], [0.90, 0.10]]).log()
    assert classification(logits, torch.tensor([1, 0]))["ece"] == pytest.approx((0.95 + 0.10) / 2)


def test_certain_predictions_stay_finite():
    logits = torch.tensor([[2000.0, 0.0], [0.0, 2000.0]])
    right, wrong = classification(logits, torch.tensor([0, 1])), classification(logits, torch.tensor([1, 0]))
    assert right == {"accuracy": 1.0, "macro_f1": 1.0, "balanced_accuracy": 1.0, "nll": 0.0, "ece": 0.0}
    assert wrong == {"accuracy": 0.0, "macro_f1": 0.0, "balanced_accuracy": 0.0, "nll": 2000.0, "ece": 1.0}


def test_no_examples_give_no_metrics():
    assert classification(torch.empty(0, 6), torch.empty(0, dtype=torch.int64)) == {}


def test_a_diverged_model_has_metrics_too():
    logits, targets = case("all")
    found = classification(logits * math.nan, targets)
    assert list(found) == NAMES
    assert math.isnan(found["nll"])
