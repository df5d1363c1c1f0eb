"""A round: what it derives, how often it runs the model, how it is cut, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import alenv.round
from alenv.features import Features, MissingOutputError
from alenv.inference import Outputs
from alenv.model import TaskModel
from alenv.pool import OUTSIDE, Pool
from alenv.round import Purchase, Round
from alenv.strategies.bald import BALD
from alenv.strategies.entropy import Entropy
from alenv.strategies.kmeans import KMeans
from alenv.strategies.least_confidence import LeastConfidence
from alenv.strategies.margin import Margin
from alenv.strategies.mean_std import MeanSTD
from alenv.strategies.uniform import Uniform
from alenv.strategies.variation_ratio import VariationRatio
from alenv.streams import Streams
from alenv.trainer import Trainer

SIZE, WIDTH, CLASSES, DRAWS = 30, 6, 4, 5
BLOCK_SIZES = [1, 4, 7, 23, 1000]


class Counted:
    """A trainer's `outputs` that notes how many rows it was asked to run, and adds an extra head."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._trainer = Trainer("cpu")

    def __call__(self, model: TaskModel, inputs: Tensor) -> Outputs:
        self.rows.append(len(inputs))
        plain = self._trainer.outputs(model, inputs)
        return plain._replace(aux={"loss": plain.embeddings.square().sum(1, keepdim=True)})


class CountedModel(TaskModel):
    """A task model that notes every pass through its body."""

    passes = 0

    def features(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().features(x)


def a_model(kind: type[TaskModel] = TaskModel, name: str = "init", dropout: float = 0.4) -> TaskModel:
    with Streams(0).scoped(name):
        return kind(nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 8), nn.ReLU()), 8, CLASSES, dropout=dropout).eval()


def a_pool() -> Pool:
    """Five labelled, two discarded, 23 left."""
    pool = Pool(SIZE, CLASSES)
    pool.reveal(torch.tensor([20, 3, 11, 7, 29, 15, 0]), [2, 0, 1, None, 3, OUTSIDE, 0])
    return pool


def an_input() -> Tensor:
    return torch.randn(SIZE, WIDTH, generator=Streams(0)("inputs"))


def of_model(outputs: Any = None, model: TaskModel | None = None, **more: Any) -> Round:
    semantic = torch.randn(SIZE, 3, generator=Streams(0)("semantic"))
    return Round.of_model(
        model or a_model(), an_input(), a_pool(), outputs or Counted(), Streams(0), num_draws=DRAWS,
        features={"semantic": semantic}, **more,
    )  # fmt: skip


def random(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=Streams(0)(name))


# Lazy, once


def test_nothing_runs_until_somebody_asks() -> None:
    outputs = Counted()
    now = of_model(outputs)
    assert len(now) == 23
    assert now.has("mc_probs")
    assert now.has("discarded_embeddings")
    assert now.inputs.shape == (23, WIDTH)
    assert now.labels.tolist() == [0, 0, 1, 2, 3]  # ascending in pool index
    assert outputs.rows == []


def test_the_candidates_are_run_once_however_many_strategies_ask() -> None:
    outputs, model = Counted(), a_model(CountedModel)
    now = of_model(outputs, model)
    for strategy in (BALD(), Entropy(), KMeans(), LeastConfidence(), Margin(), MeanSTD(), Uniform(), VariationRatio()):
        strategy.select(now, 4)
        strategy.select(now, 8)
    assert now.aux["loss"].shape == (23, 1)
    assert outputs.rows == [23]
    assert model.passes == 1


def test_labelled_and_discarded_examples_are_run_once_each_when_asked_for() -> None:
    outputs = Counted()
    now = of_model(outputs)
    for _ in range(2):
        assert now.labeled_embeddings.shape == (5, 8)
        assert now.discarded_embeddings.shape == (2, 8)
    assert outputs.rows == [5, 2]


def test_rows_come_in_the_order_of_candidates_labels_and_discards() -> None:
    now, model, inputs = of_model(), a_model(), an_input()
    assert now.candidates.tolist() == [i for i in range(SIZE) if i not in (20, 3, 11, 7, 29, 15, 0)]
    assert now.labeled_indices.tolist() == [0, 3, 11, 20, 29]
    assert torch.equal(now.labeled_inputs, inputs[[0, 3, 11, 20, 29]])
    torch.testing.assert_close(now.logits, model(inputs[now.candidates]))
    torch.testing.assert_close(now.probs, model(inputs[now.candidates]).softmax(1))
    torch.testing.assert_close(now.embeddings, model.features(inputs[now.candidates]))
    torch.testing.assert_close(now.labeled_embeddings, model.features(inputs[[0, 3, 11, 20, 29]]))
    torch.testing.assert_close(now.discarded_embeddings, model.features(inputs[[7, 15]]))


def test_the_same_draws_make_the_stochastic_outputs_every_time() -> None:
    now, again = of_model(), of_model()
    assert now.mc_probs.shape == (DRAWS, 23, CLASSES)
    torch.testing.assert_close(now.mc_probs.sum(2), torch.ones(DRAWS, 23))
    assert torch.equal(now.mc_probs, again.mc_probs)
    assert not torch.equal(now.mc_probs[0], now.mc_probs[1])
    assert not torch.equal(now.mc_probs, of_model(index=2).mc_probs)
    model = a_model()
    direct = model.draws(model.features(now.inputs), DRAWS, now.generator("noise")).softmax(2)
    torch.testing.assert_close(now.mc_probs, direct)


def test_a_model_without_noise_has_no_stochastic_outputs() -> None:
    with pytest.raises(ValueError, match="expected a model with noise"):
        _ = of_model(model=a_model(dropout=0.0)).mc_probs


def test_the_previous_purchase_is_passed_on() -> None:
    last = Purchase(torch.tensor([3]), torch.tensor([0]))
    assert of_model(last=last).last is last
    assert of_model().last is None


# Plain arrays


def test_probabilities_and_logits_follow_from_each_other() -> None:
    logits = random(9, CLASSES)
    probs = logits.softmax(1)
    torch.testing.assert_close(Round.from_arrays(logits=logits).probs, probs)
    torch.testing.assert_close(Round.from_arrays(probs=probs).logits.softmax(1), probs)
    torch.testing.assert_close(Round.from_arrays(probs=probs).logits, logits.log_softmax(1))


def test_embeddings_and_a_head_give_logits_and_probabilities() -> None:
    h, weight, bias = random(9, 8), random(CLASSES, 8, name="w"), random(CLASSES, name="b")
    now = Round.from_arrays(embeddings=h, head=(weight, bias))
    expected = torch.tensor([[float(h[i] @ weight[c]) + float(bias[c]) for c in range(CLASSES)] for i in range(9)])
    torch.testing.assert_close(now.logits, expected)
    torch.testing.assert_close(now.probs, expected.softmax(1))
    assert now.num_classes == CLASSES


def test_what_is_given_is_not_derived() -> None:
    logits, probs = random(9, CLASSES), random(9, CLASSES, name="other").softmax(1)
    now = Round.from_arrays(logits=logits, probs=probs)
    assert torch.equal(now.logits, logits)
    assert torch.equal(now.probs, probs)


def test_a_certain_row_has_logits_without_nan() -> None:
    assert Round.from_arrays(probs=torch.eye(3)).logits.tolist()[0] == [0, -float("inf"), -float("inf")]


def test_numpy_arrays_and_lists_are_taken() -> None:
    probs = np.array([[0.7, 0.3], [0.4, 0.6]])
    head = (np.eye(2), [0, 1])
    now = Round.from_arrays(probs=probs, labels=[1, 0], labeled_embeddings=np.zeros((2, 2), dtype=np.float32), head=head)
    assert now.probs.dtype == torch.float64
    assert now.labels.dtype == torch.int64
    assert now.head[1].tolist() == [0, 1]
    assert LeastConfidence().select(now, 2).tolist() == [1, 0]
    assert Round.from_arrays(embeddings=[[1, 2], [3, 4]]).embeddings.is_floating_point()


def test_features_are_taken_as_a_pair_or_for_the_candidates_alone() -> None:
    pair = (np.ones((3, 2)), np.zeros((5, 2)))
    now = Round.from_arrays(features={"semantic": pair, "distinctive": torch.ones(3, 4)})
    assert len(now) == 3
    assert isinstance(now.features("semantic"), Features)
    assert now.features("semantic").labeled.shape == (5, 2)
    assert now.features("distinctive").candidates.shape == (3, 4)


def test_the_number_of_draws_is_read_off_the_stochastic_outputs() -> None:
    assert Round.from_arrays(mc_probs=random(7, 3, CLASSES).softmax(2)).num_draws == 7


@pytest.mark.parametrize(
    ("arrays", "classes"),
    [
        ({"probs": torch.eye(3)}, 3),
        ({"logits": torch.zeros(2, 4)}, 4),
        ({"mc_probs": torch.full((2, 3, 5), 0.2)}, 5),
        ({"embeddings": torch.zeros(2, 3), "head": (torch.zeros(6, 3), torch.zeros(6))}, 6),
        ({"embeddings": torch.zeros(2, 3), "labels": [0, 4, 1]}, 5),
        ({"embeddings": torch.zeros(2, 3), "labels": [0, 4, 1], "num_classes": 8}, 8),
    ],
)
def test_the_number_of_classes_is_read_off_whatever_shows_it(arrays: dict[str, Any], classes: int) -> None:
    assert Round.from_arrays(**arrays).num_classes == classes


ARRAYS = ["probs", "logits", "embeddings", "labeled_embeddings", "discarded_embeddings", "mc_probs", "head"]
MISSING = [*ARRAYS, "model", "inputs", "labeled_inputs", "labeled_indices", "pool"]


@pytest.mark.parametrize("name", MISSING)
def test_what_was_not_given_raises_by_name(name: str) -> None:
    now = Round.from_arrays(features={"semantic": torch.zeros(3, 2)})
    assert not now.has(name)
    with pytest.raises(MissingOutputError, match=rf"no {name}: it was not given and cannot be derived; pass {name}=\.\.\."):
        getattr(now, name)


def test_features_nobody_provides_raise_by_name() -> None:
    with pytest.raises(MissingOutputError, match="no features 'semantic'"):
        Round.from_arrays(probs=torch.eye(2)).features("semantic")


def test_arrays_and_heads_of_models_that_train_carry_no_graph() -> None:
    weight = torch.ones(2, 3, requires_grad=True)
    now = Round.from_arrays(embeddings=torch.ones(4, 3) * weight.sum(), head=(weight, torch.zeros(2)))
    model = a_model().requires_grad_(True)
    assert not any(part.requires_grad for part in (now.probs, *now.head, *of_model(model=model).head))


def test_a_strategy_on_a_round_without_its_arrays_names_what_is_missing() -> None:
    now = Round.from_arrays(embeddings=torch.zeros(3, 2))
    with pytest.raises(MissingOutputError, match="no probs"):
        Entropy().select(now, 1)
    with pytest.raises(MissingOutputError, match="no mc_probs"):
        BALD().select(now, 1)


@pytest.mark.parametrize("name", [*ARRAYS, "aux"])
def test_nan_is_refused_by_name(name: str) -> None:
    bad = torch.full((2, 3), torch.nan)
    given: Any = {"mc_probs": bad.unsqueeze(0), "aux": {"loss": bad}, "head": (bad, torch.zeros(2))}.get(name, bad)
    said = {"aux": "aux loss", "head": "head weight"}.get(name, name)
    with pytest.raises(ValueError, match=f"{said} holds NaN"):
        Round.from_arrays(**({"embeddings": torch.zeros(2, 3), "labels": [0, 1]} | {name: given}))


def test_logits_that_turn_out_nan_are_refused() -> None:
    def diverged(model: TaskModel, inputs: Tensor) -> Outputs:
        logits = torch.zeros(len(inputs), CLASSES)
        logits[[2, 5]] = torch.nan
        return Outputs(torch.zeros(len(inputs), 8), logits, {})

    with pytest.raises(ValueError, match="logits of 2 of 23 candidates are NaN; training diverged"):
        _ = of_model(diverged).probs


def test_every_output_gone_nan_is_refused_even_where_only_some_passes_are() -> None:
    def diverged(model: TaskModel, inputs: Tensor) -> Outputs:
        embeddings = torch.zeros(len(inputs), 8)
        embeddings[4, 0] = torch.nan
        return Outputs(embeddings, torch.zeros(len(inputs), CLASSES), {})

    with pytest.raises(ValueError, match="embeddings of 1 of 23 candidates are NaN"):
        KMeans().select(of_model(diverged), 2)
    broken = a_model()
    broken.linear.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="mc_probs of 23 of 23 candidates are NaN"):
        VariationRatio().select(of_model(model=broken), 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "at least one array about the candidates"),
        ({"labels": [0, 1]}, "at least one array about the candidates"),
        ({"probs": torch.eye(3), "embeddings": torch.zeros(4, 2)}, "'probs': 3, 'embeddings': 4"),
        ({"logits": torch.zeros(3, 2), "mc_probs": torch.full((3, 2, 2), 0.5)}, "'logits': 3, 'mc_probs': 2"),
        ({"logits": torch.zeros(3, 2), "aux": {"loss": torch.zeros(2, 1)}}, "'aux loss': 2"),
        ({"logits": torch.zeros(3, 2), "features": {"semantic": torch.zeros(2, 1)}}, "'features semantic': 2"),
        ({"logits": torch.zeros(3)}, r"logits with 2 axes, got shape \(3,\)"),
        ({"mc_probs": torch.full((3, 2), 0.5)}, r"mc_probs with 3 axes, got shape \(3, 2\)"),
        ({"probs": torch.ones(3, 2)}, "rows of probs that are non-negative and sum to one"),
        ({"probs": torch.tensor([[1.5, -0.5]])}, "rows of probs that are non-negative and sum to one"),
        ({"mc_probs": torch.ones(2, 3, 2)}, "rows of mc_probs that are non-negative and sum to one"),
        ({"logits": torch.zeros(3, 2), "labeled_embeddings": torch.zeros(4, 2), "labels": [0, 1]}, r"\(4\), got 2 labels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Round.from_arrays(**arrays)


# Blocks


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("computed_before", [False, True])
def test_blocks_put_together_are_the_whole(size: int, computed_before: bool) -> None:
    whole, cut = of_model(), of_model()
    if computed_before:
        _ = cut.probs, cut.mc_probs
    blocks = list(cut.blocks("probs", "mc_probs", size=size))
    assert [len(block) for block in blocks] == [min(size, 23 - start) for start in range(0, 23, size)]
    assert torch.equal(torch.cat([block.candidates for block in blocks]), whole.candidates)
    for name in ("inputs", "logits", "probs", "embeddings"):
        assert torch.equal(torch.cat([getattr(block, name) for block in blocks]), getattr(whole, name)), name
    torch.testing.assert_close(torch.cat([block.mc_probs for block in blocks], 1), whole.mc_probs)
    assert torch.equal(torch.cat([block.aux["loss"] for block in blocks]), whole.aux["loss"])
    features = torch.cat([block.features("semantic").candidates for block in blocks])
    assert torch.equal(features, whole.features("semantic").candidates)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_blocks_share_what_is_not_about_candidates(size: int) -> None:
    outputs = Counted()
    now = of_model(outputs)
    for block in now.blocks("probs", size=size):
        assert block.labels is now.labels
        assert block.labeled_embeddings is now.labeled_embeddings
        assert block.head is now.head
        assert block.model is now.model
        assert block.features("semantic").labeled is now.features("semantic").labeled
        assert block.has("mc_probs")
        assert (block.index, block.num_draws, block.num_classes) == (1, DRAWS, CLASSES)
        assert block.probs.shape == (len(block), CLASSES)
    assert outputs.rows == [5, 23]


def test_stochastic_outputs_are_kept_for_the_next_strategy_only_where_they_are_few(monkeypatch) -> None:
    shared, streamed = of_model(), of_model()
    kept = torch.cat([block.mc_probs for block in shared.blocks("mc_probs", size=5)], 1)
    assert "mc_probs" in shared._values
    monkeypatch.setattr("alenv.round.KEPT_ELEMENTS", 0)
    drawn = torch.cat([block.mc_probs for block in streamed.blocks("mc_probs", size=5)], 1)
    assert "mc_probs" not in streamed._values
    torch.testing.assert_close(kept, drawn)


def test_blocks_of_plain_arrays_slice_them() -> None:
    mc = random(4, 9, CLASSES).softmax(2)
    now = Round.from_arrays(mc_probs=mc, embeddings=random(9, 2, name="h"), aux={"loss": random(9, 1, name="loss")})
    blocks = list(now.blocks("mc_probs", size=4))
    assert torch.equal(torch.cat([block.mc_probs for block in blocks], 1), mc)
    assert torch.equal(torch.cat([block.aux["loss"] for block in blocks]), now.aux["loss"])
    with pytest.raises(MissingOutputError, match="no logits"):
        _ = blocks[0].logits


def test_the_default_block_size_shrinks_with_the_number_of_draws() -> None:
    wide = Round.from_arrays(mc_probs=torch.full((64, 700, 128), 1 / 128), logits=torch.zeros(700, 128))
    assert [len(block) for block in wide.blocks("mc_probs")] == [512, 188]
    assert [len(block) for block in wide.blocks("probs")] == [700]


@pytest.mark.parametrize("strategy", [LeastConfidence(), Margin(), Entropy(), BALD(), VariationRatio(), MeanSTD()])
def test_pointwise_scores_do_not_depend_on_the_blocks(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert strategy.pointwise
    whole = strategy.score(of_model())
    for elements in (1, 17, 100, 500):
        monkeypatch.setattr("alenv.round.BLOCK_ELEMENTS", elements)
        torch.testing.assert_close(strategy.scores(of_model()), whole)


# Rehearsals


def test_a_rehearsal_shows_only_the_labels_asked_for() -> None:
    outputs, other = Counted(), a_model(name="other")
    now = of_model(outputs, index=3)
    half = now.within(torch.tensor([3, 29]), torch.tensor([0, 20]), other)
    assert half.labels.tolist() == [0, 2]
    assert half.candidates.tolist() == [3, 29]
    assert half.labeled_indices.tolist() == [0, 20]
    assert (half.index, half.num_draws, half.model is other) == (3, DRAWS, True)
    assert half.last is None
    assert outputs.rows == []
    torch.testing.assert_close(half.logits, other(an_input()[[3, 29]]))
    torch.testing.assert_close(half.labeled_embeddings, other.features(an_input()[[0, 20]]))
    assert torch.equal(half.features("semantic").candidates, random(SIZE, 3, name="semantic")[[3, 29]])
    assert outputs.rows == [2, 2]
    assert torch.nonzero(half.pool.labels >= 0).flatten().tolist() == [0, 20]
    with pytest.raises(ValueError, match="never bought"):
        half.within(torch.tensor([3]), torch.tensor([11]), other)
    assert half.within(torch.tensor([20]), torch.tensor([0]), other).labels.tolist() == [0]


def test_what_was_not_given_is_missing_by_name_also_inside_dictionaries_and_pairs() -> None:
    now = Round.from_arrays(probs=np.eye(2), features={"semantic": np.ones((2, 3))})
    for read in (lambda: now.labels, lambda: now.aux["loss"], lambda: now.features("semantic").labeled):
        with pytest.raises(MissingOutputError):
            read()
    assert not now.has("labels")


@pytest.mark.parametrize(
    "arrays",
    [
        {"probs": np.eye(3), "logits": np.ones((3, 2))},
        {"probs": np.eye(3), "num_classes": 9},
        {"probs": np.eye(3), "labels": [0, 3]},
        {"probs": np.eye(3), "labels": [0, -1]},
        {"embeddings": np.ones((3, 4)), "head": (np.ones((2, 5)), np.ones(2))},
        {"mc_probs": np.ones(3)},
    ],
)
def test_arrays_that_contradict_each_other_are_refused(arrays) -> None:
    with pytest.raises(ValueError, match="expected"):
        Round.from_arrays(**arrays)


@pytest.mark.parametrize("index", [7, 15, 1], ids=["abstained", "outside", "never bought"])
def test_a_rehearsal_refuses_labels_that_were_not_bought(index: int) -> None:
    with pytest.raises(ValueError, match="some whose label was never bought"):
        of_model().within(torch.tensor([0]), torch.tensor([3, index]), a_model())


def test_plain_arrays_cannot_be_rehearsed() -> None:
    with pytest.raises(MissingOutputError, match="no within"):
        Round.from_arrays(probs=torch.eye(2)).within(torch.tensor([0]), torch.tensor([1]), a_model())


# Randomness


def test_a_generator_depends_on_its_name_the_round_and_the_seed_alone() -> None:
    def draw(now: Round, name: str) -> list[float]:
        return torch.rand(4, generator=now.generator(name)).tolist()

    now = of_model()
    assert draw(now, "a") == draw(now, "a") == draw(of_model(), "a")
    assert draw(now, "a") != draw(now, "b")
    assert draw(now, "a") != draw(of_model(index=2), "a")
    plain = [Round.from_arrays(probs=torch.eye(2), seed=seed) for seed in (0, 0, 1)]
    assert draw(plain[0], "a") == draw(plain[1], "a") != draw(plain[2], "a")
    assert draw(next(iter(now.blocks(size=2))), "a") == draw(now, "a")


def test_a_round_prints_its_sizes() -> None:
    assert repr(of_model()) == "Round(index=1, candidates=23, labeled=5, num_classes=4)"


def test_parts_of_what_was_looked_at_are_not_looked_at_again(monkeypatch):
    looked, original = [], alenv.round._require_numbers
    monkeypatch.setattr(alenv.round, "_require_numbers", lambda name, values: looked.append(name) or original(name, values))
    whole = Round.from_arrays(logits=torch.randn(20, 3, generator=Streams(0)("x")))
    for block in whole.blocks("probs", size=5):
        block.probs.sum()
    assert looked == ["probs"]
