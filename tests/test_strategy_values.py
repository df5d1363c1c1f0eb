"""What the plain strategies compute: cases worked out by hand, laws of the formulas, and slow twins in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from alenv.inference import Outputs
from alenv.model import TaskModel
from alenv.pool import Pool
from alenv.round import Round
from alenv.strategies.bald import BALD
from alenv.strategies.entropy import Entropy
from alenv.strategies.kmeans import KMeans
from alenv.strategies.least_confidence import LeastConfidence
from alenv.strategies.margin import Margin
from alenv.strategies.mean_std import MeanSTD
from alenv.strategies.uniform import Uniform
from alenv.strategies.variation_ratio import VariationRatio
from alenv.strategy import ScoreStrategy, Strategy
from alenv.streams import Streams
from alenv.trainer import Trainer

P4 = torch.tensor([[0.90, 0.05, 0.05], [0.40, 0.35, 0.25], [0.50, 0.49, 0.01], [0.36, 0.33, 0.31]])
MC3 = torch.tensor([[[0.5, 0.5], [1, 0], [0.9, 0.1]]] * 2 + [[[0.5, 0.5], [0, 1], [0.9, 0.1]]] * 2)  # (T=4, U=3, C=2)

ONE_PASS = [LeastConfidence(), Margin(), Entropy(), VariationRatio("single")]
MANY_PASSES = [BALD(), VariationRatio(), MeanSTD()]
EVERY = [*ONE_PASS, *MANY_PASSES, KMeans(), Uniform()]


def named(strategy: Strategy) -> str:
    return type(strategy).__name__ + ("Single" if getattr(strategy, "mode", "") == "single" else "")


def simplex(*shape: int, sharpness: float = 2.0, name: str = "probs") -> Tensor:
    """Random distributions along the last axis."""
    return (sharpness * torch.randn(shape, generator=Streams(0)(name), dtype=torch.float64)).softmax(-1)


def a_round(**changes: object) -> Round:
    arrays = {"probs": simplex(17, 5), "mc_probs": simplex(6, 17, 5, name="mc"), "embeddings": simplex(17, 8, name="h")}
    return Round.from_arrays(**(arrays | changes))


# By hand


@pytest.mark.parametrize(
    ("strategy", "scores", "order"),
    [
        (LeastConfidence(), [0.10, 0.60, 0.50, 0.64], [3, 1, 2, 0]),
        (VariationRatio("single"), [0.10, 0.60, 0.50, 0.64], [3, 1, 2, 0]),
        (Margin(), [-0.85, -0.05, -0.01, -0.03], [2, 3, 1, 0]),
        (Entropy(), [0.394, 1.081, 0.742, 1.097], [3, 1, 2, 0]),
    ],
    ids=named,
)
def test_scores_and_order_of_four_candidates_are_those_worked_out_by_hand(
    strategy: ScoreStrategy, scores: list[float], order: list[int]
) -> None:
    now = Round.from_arrays(probs=P4)
    torch.testing.assert_close(strategy.scores(now), torch.tensor(scores), atol=6e-4, rtol=0)
    assert strategy.select(now, 4).tolist() == order
    assert strategy.select(now, 2).tolist() == order[:2]


@pytest.mark.parametrize(
    ("strategy", "score"), [(VariationRatio(), 0.5), (MeanSTD(), 0.5), (BALD(), math.log(2))],
    ids=lambda x: named(x) if isinstance(x, Strategy) else "",
)  # fmt: skip
def test_disagreeing_passes_are_bought_and_flat_but_agreeing_ones_are_not(strategy: ScoreStrategy, score: float) -> None:
    now = Round.from_arrays(mc_probs=MC3)
    torch.testing.assert_close(strategy.scores(now), torch.tensor([0.0, score, 0.0]), atol=1e-6, rtol=0)
    assert strategy.select(now, 1).tolist() == [1]


def test_mean_std_is_the_population_deviation_averaged_over_classes() -> None:
    mc = torch.tensor([[[0.2, 0.8]], [[0.4, 0.6]], [[0.9, 0.1]]])  # deviations of .2, .4, .9 from .5: variance .26 / 3
    torch.testing.assert_close(MeanSTD().scores(Round.from_arrays(mc_probs=mc)), torch.tensor([math.sqrt(0.26 / 3)]))


# Slow twins


def entropy_of(p: np.ndarray) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def bald_of(passes: np.ndarray) -> float:
    return entropy_of(passes.mean(0)) - sum(entropy_of(p) for p in passes) / len(passes)


def modal_share_missing(passes: np.ndarray) -> float:
    votes = [int(p.argmax()) for p in passes]
    return 1 - max(votes.count(v) for v in votes) / len(votes)


def mean_deviation(passes: np.ndarray) -> float:
    columns = [[p[c] for p in passes] for c in range(passes.shape[1])]
    return sum(math.sqrt(sum((x - sum(col) / len(col)) ** 2 for x in col) / len(col)) for col in columns) / len(columns)


@pytest.mark.parametrize(
    ("strategy", "twin"),
    [
        (LeastConfidence(), lambda p: 1 - max(p)),
        (VariationRatio("single"), lambda p: 1 - max(p)),
        (Margin(), lambda p: sorted(p)[-2] - sorted(p)[-1]),
        (Entropy(), entropy_of),
    ],
    ids=lambda x: named(x) if isinstance(x, Strategy) else "",
)
def test_scores_of_one_pass_equal_a_plain_loop(strategy: ScoreStrategy, twin: object) -> None:
    now = a_round()
    np.testing.assert_allclose(strategy.scores(now).numpy(), [twin(p) for p in now.probs.numpy()], atol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "twin"), [(BALD(), bald_of), (VariationRatio(), modal_share_missing), (MeanSTD(), mean_deviation)],
    ids=lambda x: named(x) if isinstance(x, Strategy) else "",
)  # fmt: skip
def test_scores_of_many_passes_equal_a_plain_loop(strategy: ScoreStrategy, twin: object) -> None:
    now = a_round()
    passes = now.mc_probs.numpy()
    np.testing.assert_allclose(strategy.scores(now).numpy(), [twin(passes[:, u]) for u in range(17)], atol=1e-6)


# Laws


@pytest.mark.parametrize("strategy", ONE_PASS, ids=named)
def test_a_constant_added_to_a_rows_logits_changes_nothing(strategy: ScoreStrategy) -> None:
    logits = 3 * torch.randn(17, 5, generator=Streams(0)("logits"), dtype=torch.float64)
    shift = torch.linspace(-50, 50, 17, dtype=torch.float64).unsqueeze(1)
    plain, shifted = Round.from_arrays(logits=logits), Round.from_arrays(logits=logits + shift)
    torch.testing.assert_close(strategy.scores(plain), strategy.scores(shifted))
    assert torch.equal(strategy.select(plain, 17), strategy.select(shifted, 17))


@pytest.mark.parametrize("strategy", [*ONE_PASS, *MANY_PASSES], ids=named)
def test_renaming_the_classes_changes_nothing(strategy: ScoreStrategy) -> None:
    classes = torch.tensor([3, 0, 4, 2, 1])
    plain = a_round()
    renamed = a_round(probs=plain.probs[:, classes], mc_probs=plain.mc_probs[:, :, classes])
    torch.testing.assert_close(strategy.scores(plain), strategy.scores(renamed))
    assert torch.equal(strategy.select(plain, 17), strategy.select(renamed, 17))


@pytest.mark.parametrize(
    ("strategy", "least"), [(LeastConfidence(), 0), (VariationRatio("single"), 0), (Margin(), -1), (Entropy(), 0)],
    ids=lambda x: named(x) if isinstance(x, Strategy) else "",
)  # fmt: skip
def test_a_certain_row_scores_exactly_the_least_there_is(strategy: ScoreStrategy, least: float) -> None:
    assert strategy.scores(Round.from_arrays(probs=torch.eye(4))).tolist() == [least] * 4


@pytest.mark.parametrize("strategy", [BALD(), VariationRatio()], ids=named)
def test_certain_passes_that_agree_score_exactly_zero(strategy: ScoreStrategy) -> None:
    assert strategy.scores(Round.from_arrays(mc_probs=torch.eye(4).expand(3, 4, 4))).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("strategy", "most"),
    [(LeastConfidence(), 0.8), (VariationRatio("single"), 0.8), (Margin(), 0.0), (Entropy(), math.log(5))],
    ids=lambda x: named(x) if isinstance(x, Strategy) else "",
)
def test_a_flat_row_scores_the_most_there_is(strategy: ScoreStrategy, most: float) -> None:
    scores = strategy.scores(a_round(probs=torch.cat([simplex(16, 5), torch.full((1, 5), 0.2, dtype=torch.float64)])))
    assert scores[-1].item() == pytest.approx(most, abs=1e-12)
    assert scores[:-1].max() < scores[-1]


def test_a_margin_of_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        Margin().select(Round.from_arrays(probs=torch.ones(3, 1)), 1)


def test_with_two_classes_confidence_margin_and_entropy_rank_alike() -> None:
    first = torch.linspace(0.013, 0.97, 40, dtype=torch.float64)[torch.randperm(40, generator=Streams(0)("shuffle"))]
    now = Round.from_arrays(probs=torch.stack([first, 1 - first], 1))
    orders = [strategy.select(now, 40) for strategy in (LeastConfidence(), Margin(), Entropy())]
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def test_margin_and_confidence_disagree_with_more_classes() -> None:
    now = a_round()
    assert not torch.equal(LeastConfidence().select(now, 17), Margin().select(now, 17))
    assert not torch.equal(LeastConfidence().select(now, 17), Entropy().select(now, 17))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), draws=st.integers(1, 6), classes=st.integers(2, 7),
    sharpness=st.sampled_from([0.0, 0.1, 1.0, 10.0, 300.0]),
)  # fmt: skip
def test_bald_lies_between_zero_and_log_c(seed: int, draws: int, classes: int, sharpness: float) -> None:
    logits = sharpness * torch.randn(draws, 9, classes, generator=Streams(seed)("bald"))
    scores = BALD().scores(Round.from_arrays(mc_probs=logits.softmax(2)))
    assert scores.min() >= 0
    assert scores.max() <= math.log(min(classes, max(2, draws))) + 1e-5  # T passes tell at most log T


def test_bald_reaches_log_c_when_every_pass_names_another_class() -> None:
    assert BALD().scores(Round.from_arrays(mc_probs=torch.eye(6).unsqueeze(1))).item() == pytest.approx(math.log(6), abs=1e-6)


@pytest.mark.parametrize("strategy", MANY_PASSES, ids=named)
def test_scoring_leaves_batch_norm_buffers_and_modes_alone(strategy: Strategy) -> None:
    with Streams(0).scoped("init"):
        body = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8))
        model = TaskModel(body, 8, 3, dropout=0.4).eval()
        model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = 5 + torch.randn(30, 6, generator=Streams(0)("x"))
    pool = Pool(30, 3)
    pool.reveal(torch.tensor([0, 1]), [0, 1])
    now = Round.of_model(model, inputs, pool, Trainer("cpu").outputs, Streams(0))
    strategy.select(now, 5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


# Variation ratio, mean deviation


def test_single_pass_variation_ratio_ranks_exactly_like_least_confidence() -> None:
    now = a_round()
    assert torch.equal(VariationRatio("single").scores(now), LeastConfidence().scores(now))


def test_voting_and_single_pass_variation_ratio_read_different_things() -> None:
    assert VariationRatio().needs == {"mc_probs"}
    assert VariationRatio("single").needs == {"probs"}
    with pytest.raises(ValueError, match="mode=vote or mode=single, got 'voting'"):
        VariationRatio("voting")


@pytest.mark.parametrize("draws", [2, 3, 7, 10])
def test_mean_std_says_so_when_all_passes_are_identical_and_buys_by_lot(draws: int) -> None:
    same = simplex(40, 5).float().expand(draws, 40, 5)
    with pytest.warns(UserWarning, match="no stochasticity"):
        assert MeanSTD().scores(Round.from_arrays(mc_probs=same)).tolist() == [0.0] * 40
    picks = []
    for seed in range(2):
        with pytest.warns(UserWarning, match="mean_std: no stochasticity"):
            picks.append(MeanSTD().select(Round.from_arrays(mc_probs=same, seed=seed), 5).tolist())
    assert picks[0] != picks[1]
    assert picks[0] != [0, 1, 2, 3, 4]


def test_mean_std_keeps_quiet_when_one_candidate_varies() -> None:
    assert MeanSTD().select(Round.from_arrays(mc_probs=MC3), 1).tolist() == [1]  # warnings are errors here


# Uniform


def test_uniform_draws_the_same_set_for_one_seed_and_another_for_another() -> None:
    rounds = [Round.from_arrays(embeddings=torch.zeros(50, 1), seed=seed) for seed in (3, 3, 4)]
    first, again, other = (Uniform().select(now, 10) for now in rounds)
    assert torch.equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    assert len(set(first.tolist())) == 10


def test_uniform_buys_every_candidate_equally_often() -> None:
    size, budget, rounds = 20, 5, 2000  # 10,000 purchases
    counts = torch.zeros(size)
    for seed in range(rounds):
        counts[Uniform().select(Round.from_arrays(embeddings=torch.zeros(size, 1), seed=seed), budget)] += 1
    expected = rounds * budget / size
    # purchases without replacement repel each other: the statistic shrinks by (U - B) / (U - 1)
    chi_square = float(((counts - expected) ** 2 / expected).sum()) * (size - 1) / (size - budget)
    assert 0.001 < stats.chi2.sf(chi_square, size - 1) < 0.999


def test_the_law_of_uniform_is_flat_over_what_is_left() -> None:
    law = Uniform().law(Round.from_arrays(embeddings=torch.zeros(5, 1)), torch.tensor([4, 1]))
    torch.testing.assert_close(law, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3, 0]))


# k-means


@pytest.mark.parametrize("seed", range(8))
def test_kmeans_buys_one_of_each_well_separated_blob_larger_blobs_first(seed: int) -> None:
    sizes = [30, 5, 20, 10]
    blob = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    centres = torch.tensor([[0.0, 0.0], [100, 0], [0, 100], [100, 100]])
    x = centres[blob] + torch.randn(65, 2, generator=Streams(seed)("blobs"))
    picks = KMeans().select(Round.from_arrays(embeddings=x, seed=seed), 4)
    assert blob[picks].tolist() == [0, 2, 3, 1]
    for pick in picks.tolist():
        members = torch.nonzero(blob == blob[pick]).flatten()
        distances = (x[members] - x[members].mean(0)).norm(dim=1)
        assert members[distances.argmin()] == pick


def test_kmeans_buys_the_whole_pool_and_identical_candidates() -> None:
    assert sorted(KMeans().select(Round.from_arrays(embeddings=simplex(9, 3)), 9).tolist()) == list(range(9))
    assert len(set(KMeans().select(Round.from_arrays(embeddings=torch.ones(9, 3)), 4).tolist())) == 4


# All of them


@pytest.mark.parametrize("strategy", EVERY, ids=named)
@pytest.mark.parametrize(("budget", "bought"), [(0, 0), (1, 1), (17, 17), (18, 17), (500, 17)])
def test_a_budget_is_met_with_distinct_positions_or_the_whole_pool(strategy: Strategy, budget: int, bought: int) -> None:
    picks = strategy.select(a_round(), budget)
    assert picks.dtype == torch.int64
    assert len(picks) == len(set(picks.tolist())) == bought
    assert all(0 <= p < 17 for p in picks.tolist())


@pytest.mark.parametrize("strategy", EVERY, ids=named)
def test_a_negative_budget_is_refused(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match="budget >= 0, got -1"):
        strategy.select(a_round(), -1)


@pytest.mark.parametrize("strategy", [*ONE_PASS, *MANY_PASSES, Uniform()], ids=named)  # k-means has ties here
def test_single_and_double_precision_agree(strategy: Strategy) -> None:
    double = a_round()
    single = a_round(probs=double.probs.float(), mc_probs=double.mc_probs.float(), embeddings=double.embeddings.float())
    assert torch.equal(strategy.select(double, 6), strategy.select(single, 6))


@pytest.mark.parametrize("strategy", EVERY, ids=named)
def test_a_pool_of_one_is_bought(strategy: Strategy) -> None:
    one = a_round(probs=simplex(1, 5), mc_probs=simplex(6, 1, 5), embeddings=torch.ones(1, 2))
    assert strategy.select(one, 1).tolist() == [0]


@pytest.mark.parametrize("strategy", ONE_PASS, ids=named)
def test_equal_scores_fall_by_lot_rather_than_by_position(strategy: Strategy) -> None:
    flat = torch.full((40, 4), 0.25)
    first, again, other = (strategy.select(Round.from_arrays(probs=flat, seed=seed), 6).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first != [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("strategy", [*ONE_PASS, *MANY_PASSES], ids=named)
def test_logits_gone_nan_are_refused(strategy: Strategy) -> None:
    with Streams(0).scoped("init"):
        model = TaskModel(nn.Flatten(), 4, 3, dropout=0.5)
    pool = Pool(6, 3)
    pool.reveal(torch.tensor([0]), [0])

    def diverged(model: TaskModel, inputs: Tensor) -> Outputs:
        return Outputs(torch.full((len(inputs), 4), torch.nan), torch.full((len(inputs), 3), torch.nan), {})

    with pytest.raises(ValueError, match="NaN"):
        strategy.select(Round.of_model(model, torch.zeros(6, 4), pool, diverged, Streams(0)), 2)
