"""PowerBALD and power margin: draws in proportion to a power of a score."""

import math

import pytest
import torch
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategies.power_bald import PowerBALD
from alenv.strategies.power_margin import PowerMargin
from alenv.streams import Streams

PROBS = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [1.0, 0.0, 0.0]])  # masses .2, .8, 1, 0
CERTAIN = torch.eye(3)[[0, 1, 2, 0, 1]]


def disagreeing(size: int) -> Tensor:
    return (2 * torch.randn(6, size, 4, generator=Streams(0)("mc"))).softmax(2)


def test_the_laws_are_those_worked_out_by_hand() -> None:
    now, nothing = Round.from_arrays(probs=PROBS), torch.zeros(0, dtype=torch.int64)
    torch.testing.assert_close(PowerMargin().law(now, nothing), torch.tensor([0.1, 0.4, 0.5, 0]))
    torch.testing.assert_close(PowerMargin(2.0).law(now, nothing), torch.tensor([0.04, 0.64, 1, 0]) / 1.68)
    torch.testing.assert_close(PowerMargin().law(now, torch.tensor([2])), torch.tensor([0.2, 0.8, 0, 0]))
    torch.testing.assert_close(PowerMargin().law(now, torch.tensor([2, 0, 1])), torch.tensor([0.0, 0, 0, 1]))
    mc = torch.tensor([[[1.0, 0], [0.5, 0.5], [0.75, 0.25]], [[0.0, 1], [0.5, 0.5], [0.25, 0.75]]])
    mass = torch.tensor([math.log(2), 0, math.log(2) - 0.5623351])  # log 2 - H(.75)
    law = PowerBALD().law(Round.from_arrays(mc_probs=mc), nothing)
    torch.testing.assert_close(law, mass / mass.sum(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_first_and_second_picks_follow_the_law(beta: float) -> None:
    strategy, times = PowerMargin(beta), 1000
    first, pairs = torch.zeros(4), torch.zeros(4, 4)
    for seed in range(times):
        a, b = strategy.select(Round.from_arrays(probs=PROBS, seed=seed), 2).tolist()
        first[a] += 1
        pairs[a, b] += 1
    now = Round.from_arrays(probs=PROBS)
    law = strategy.law(now, torch.zeros(0, dtype=torch.int64))
    expected = torch.stack([law[a] * strategy.law(now, torch.tensor([a])) for a in range(4)])
    assert ((first / times - law).abs() <= 4.5 * (law * (1 - law) / times).sqrt()).all()
    assert ((pairs / times - expected).abs() <= 4.5 * (expected * (1 - expected) / times).sqrt()).all()


@pytest.mark.parametrize(("strategy", "score"), [(PowerBALD, "bald"), (PowerMargin, "margin")])
def test_a_large_beta_is_the_greedy_order_and_zero_is_uniform(strategy: type[PowerBALD], score: str) -> None:
    mc = disagreeing(30)
    now = Round.from_arrays(mc_probs=mc, probs=mc[0])
    two = mc[0].topk(2).values
    greedy = {"bald": ops.mutual_information(mc), "margin": two[:, 1] - two[:, 0]}[score]
    assert strategy(1e6).select(now, 5).tolist() == greedy.argsort(descending=True)[:5].tolist()
    torch.testing.assert_close(strategy(0.0).law(now, torch.tensor([3])), ops.mask_without(30, torch.tensor([3])) / 29)


@pytest.mark.parametrize(
    ("strategy", "arrays"), [(PowerMargin(), {"probs": CERTAIN}), (PowerBALD(), {"mc_probs": CERTAIN.expand(3, 5, 3)})]
)
def test_scores_that_are_all_zero_leave_it_to_the_lot(strategy: PowerBALD, arrays: dict[str, Tensor]) -> None:
    picks = {tuple(strategy.select(Round.from_arrays(**arrays, seed=seed), 3).tolist()) for seed in range(20)}
    assert len(picks) > 5
    law = strategy.law(Round.from_arrays(**arrays), torch.tensor([1, 4]))
    torch.testing.assert_close(law, torch.tensor([1.0, 0, 1, 1, 0]) / 3)
    assert strategy.law(Round.from_arrays(**arrays), torch.arange(5)).tolist() == [0.0] * 5


@pytest.mark.parametrize("strategy", [PowerBALD(), PowerMargin()])
def test_picks_are_distinct_repeat_with_the_seed_and_cover_the_pool(strategy: PowerBALD) -> None:
    mc = disagreeing(50)
    rounds = [Round.from_arrays(mc_probs=mc, probs=mc.mean(0), seed=seed) for seed in (1, 1, 2)]
    first, again, other = (strategy.select(now, 10) for now in rounds)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sorted(strategy.select(rounds[0], 99).tolist()) == list(range(50))


def test_gumbel_noise_has_the_gumbel_distribution() -> None:
    noise = ops.gumbel(torch.zeros(20_000, dtype=torch.float64), Streams(0)("gumbel"))
    assert noise.isfinite().all()
    for x in (-1.0, 0.0, 1.0, 3.0):
        assert float((noise <= x).double().mean()) == pytest.approx(math.exp(-math.exp(-x)), abs=0.015)
