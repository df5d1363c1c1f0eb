"""Bandits over strategies: updates worked out by hand, planted tasks, and controls in which there is nothing to learn."""

import math

import pytest
import torch

from alenv import bandits
from alenv.ballot import Ballot
from alenv.campaign import Plan, Query, action_weights
from alenv.mixing import sample_draw
from alenv.record import Record
from alenv.round import Round
from alenv.selector import Context, Transition
from alenv.selectors.comb import Comb
from alenv.selectors.exp3 import Exp3
from alenv.selectors.exp4 import Exp4
from alenv.selectors.rexp4 import RExp4
from alenv.selectors.softmax_gain import SoftmaxGain
from alenv.selectors.sw_ucb import SlidingWindowUCB
from alenv.selectors.thompson import Thompson
from alenv.selectors.ucb import UCB
from alenv.strategy import ScoreStrategy, Strategy
from alenv.streams import Streams

ARMS = [Exp3, UCB, SlidingWindowUCB, Thompson, SoftmaxGain]
EXPERTS = [Exp4, RExp4, Comb]
NAMES = "abcdefgh"


def began(selector, arms=3, rounds=200, batch=1, seed=0, pool=24, reward_range=(0.0, 1.0)):
    plan = Plan(initial=1, batch=batch, rounds=rounds, action=selector.action_kind)
    selector.begin(Context(tuple(NAMES[:arms]), 3, pool, plan, Streams(seed), None, None, reward_range=reward_range))
    return selector


def transition(action, query, reward, round=1):
    none = torch.zeros(0, dtype=torch.int64)
    record = Record(round, 0, 0, 0.0, (), ())
    return Transition({}, action, query, record, float(reward), {}, False, none)


def pulled(arm, reward):
    return transition(arm, question(torch.zeros(0, dtype=torch.int64), torch.zeros(0)), reward)


def question(indices, propensity):
    empty = torch.zeros(0)
    return Query(1, indices, (), (), propensity, empty, empty.view(0, 0))


# Arms by hand


def test_rewards_are_scaled_to_the_unit_interval_where_it_has_ends():
    assert bandits.unit(0.5, -1.0, 1.0) == 0.75
    assert bandits.unit(7.0, 0.0, math.inf) == 7.0
    exp3 = began(Exp3(), reward_range=(-1.0, 1.0))
    assert exp3.scaled(-1.0) == 0.0


def test_exp3_explores_as_much_as_corollary_3_2_says():
    exp3 = began(Exp3(), arms=4, rounds=300)
    assert exp3.rate == pytest.approx(math.sqrt(4 * math.log(4) / ((math.e - 1) * 300)))
    assert began(Exp3(), arms=8, rounds=3).rate == 1.0
    assert exp3.standing().tolist() == pytest.approx([0.25] * 4)


def test_exp3_update_is_the_papers():
    exp3 = began(Exp3(gamma=0.3), arms=3)
    logged = exp3.update(pulled(1, 0.8))
    w = [1, math.exp(0.3 * 0.8 / (3 * (1 / 3))), 1]
    expected = [0.7 * x / sum(w) + 0.1 for x in w]
    assert exp3.standing().tolist() == pytest.approx(expected)
    assert logged == pytest.approx(dict(zip(["probability/a", "probability/b", "probability/c"], expected, strict=True)))
    exp3.update(pulled(0, 0.5))
    w[0] *= math.exp(0.3 * 0.5 / (3 * expected[0]))
    assert exp3.standing().tolist() == pytest.approx([0.7 * x / sum(w) + 0.1 for x in w])


def test_ucb_pulls_every_arm_once_and_then_the_highest_bound():
    ucb = began(UCB(), arms=3)
    lot, first = Streams(0)("lot"), []
    for reward in (0.2, 0.4, 0.9):
        first.append(ucb.pull(lot))
        ucb.update(pulled(first[-1], reward))
    assert sorted(first) == [0, 1, 2]
    ucb.update(pulled(first[2], 0.7))  # t = 4: means .2 .4 .8, pulls 1 1 2
    expected = [0.2 + math.sqrt(2 * math.log(4)), 0.4 + math.sqrt(2 * math.log(4)), 0.8 + math.sqrt(math.log(4))]
    assert ucb.index()[first].tolist() == pytest.approx(expected)
    assert ucb.pull(lot) == first[1]


def test_ucb_breaks_ties_by_lot():
    picks = {began(UCB(), arms=4).pull(Streams(seed)("lot")) for seed in range(40)}
    assert picks == {0, 1, 2, 3}


def test_sliding_window_ucb_counts_the_window_only():
    sw = began(SlidingWindowUCB(window=4), arms=2)
    for arm, reward in [(0, 1.0), (0, 1.0), (1, 0.5), (0, 0.0), (1, 0.7), (0, 0.4)]:
        sw.update(pulled(arm, reward))
    # left: (1, .5) (0, 0) (1, .7) (0, .4)
    assert sw.standing().tolist() == pytest.approx([0.2, 0.6])
    bonus = math.sqrt(0.6 * math.log(4) / 2)
    assert sw.index().tolist() == pytest.approx([0.2 + bonus, 0.6 + bonus])
    for _ in range(3):
        sw.update(pulled(1, 0.6))
    assert sw.index()[0] == pytest.approx(0.4 + math.sqrt(0.6 * math.log(4)))
    sw.update(pulled(1, 0.6))
    assert sw.index()[0] == math.inf
    assert sw.pull(Streams(0)("lot")) == 0


def test_the_window_of_the_theorem_grows_with_the_rounds_and_shrinks_with_the_changes():
    assert began(SlidingWindowUCB(), rounds=100).span == math.ceil(2 * math.sqrt(100 * math.log(100)))
    assert began(SlidingWindowUCB(changes=4), rounds=100).span == math.ceil(math.sqrt(100 * math.log(100)))
    assert began(SlidingWindowUCB(), rounds=1).span >= 1


def test_a_window_longer_than_the_campaign_is_ucb_with_another_constant():
    sw, ucb = began(SlidingWindowUCB(window=1000, xi=2.0)), began(UCB())
    for arm, reward in [(0, 0.3), (1, 0.9), (2, 0.1), (1, 0.2), (0, 0.6)]:
        sw.update(pulled(arm, reward))
        ucb.update(pulled(arm, reward))
    assert sw.index().tolist() == pytest.approx(ucb.index().tolist())


def test_thompson_posterior_is_the_discounted_count_of_successes():
    thompson = began(Thompson(discount=0.5), arms=2)
    thompson.update(pulled(0, 1.0))
    thompson.update(pulled(0, 0.25))
    thompson.update(pulled(1, 0.0))
    # successes .25 + .125, failures .375; then one failure of arm 1
    assert thompson.counts.tolist() == [[0.375, 0.375], [0.0, 1.0]]
    assert thompson.standing().tolist() == pytest.approx([0.5, 1 / 3])


def test_thompson_pulls_with_the_probability_that_an_arm_is_best():
    thompson = began(Thompson(), arms=2)
    thompson.counts[0] = torch.tensor([1.0, 0.0])  # Beta(2, 1) against Beta(1, 1): the first is higher with probability 2/3
    lot = Streams(0)("lot")
    assert sum(thompson.pull(lot) == 0 for _ in range(3000)) / 3000 == pytest.approx(2 / 3, abs=0.03)


def test_thompson_refuses_rewards_without_a_range():
    thompson = began(Thompson(), reward_range=(0.0, math.inf))
    with pytest.raises(ValueError, match=r"thompson: expected a reward in \[0, 1\], got 3.0"):
        thompson.update(pulled(0, 3.0))


def test_dirichlet_draws_have_the_mean_and_variance_of_the_law():
    law = torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64)
    draws = bandits.dirichlet(law.expand(20000, -1), Streams(0)("lot"))
    mean = law / law.sum()
    torch.testing.assert_close(draws.sum(1), torch.ones(20000, dtype=torch.float64))
    torch.testing.assert_close(draws.mean(0), mean, atol=0.005, rtol=0)
    torch.testing.assert_close(draws.var(0), mean * (1 - mean) / 9, atol=0.002, rtol=0)


def test_softmax_gain_follows_running_means():
    softmax = began(SoftmaxGain(step=0.25, temperature=0.2), arms=2)
    softmax.update(pulled(0, 0.9))
    softmax.update(pulled(0, 0.1))
    value = 0.5 + 0.25 * 0.4
    value += 0.25 * (0.1 - value)
    assert softmax.values.tolist() == pytest.approx([value, 0.5])
    share = math.exp(value / 0.2) / (math.exp(value / 0.2) + math.exp(0.5 / 0.2))
    assert softmax.standing().tolist() == pytest.approx([share, 1 - share])


# Experts by hand


class Ordered(Strategy):
    """Wishes for its own candidates, in order, then for the others."""

    def __init__(self, *order):
        self.order = order

    def select(self, round, budget):
        rest = [i for i in range(len(round)) if i not in self.order]
        return torch.tensor([*self.order, *rest][:budget])


class Scored(ScoreStrategy):
    def __init__(self, *values):
        self.values = values

    def score(self, round):
        return torch.tensor(self.values)


def a_ballot(count, *strategies, budget=1, index=1):
    round = Round.from_arrays(embeddings=torch.zeros(count, 1))
    round.index = index
    return Ballot(round, dict(zip(NAMES, strategies, strict=False)), budget)


def played(selector, ballot, seed=0):
    """What the environment makes of an action."""
    action = selector.act({}, ballot)
    mass = action_weights("sample_draw", action, len(ballot.names), selector.context.pool_size)[: len(ballot.round)]
    batch = sample_draw(mass, ballot, ballot.budget, Streams(seed)("mixing", ballot.round.index))
    return question(batch.positions, batch.propensity), mass.double() / mass.double().sum(), batch


def led_to(query, reward, round=1):
    return transition(None, query, reward, round)


def test_rank_advice_is_deals():
    advice = bandits.rank_advice(a_ballot(6, Ordered(4, 2, 0), Ordered(1, 3, 5)), depth=3, alpha=0.1, beta=10.0)
    powers = {4: 10.0, 2: 10 * math.exp(-0.1), 0: 10 * math.exp(-0.2)}
    expected = [math.exp(powers.get(i, 0.0)) for i in range(6)]
    assert advice[0].tolist() == pytest.approx([e / sum(expected) for e in expected])
    assert advice.sum(1).tolist() == pytest.approx([1, 1])


def test_score_advice_is_combs():
    advice = bandits.score_advice(a_ballot(3, Scored(5.0, 3.0, 4.0)), beta=2.0)
    expected = [math.exp(-2 * (1 - s)) for s in (1.0, 0.0, 0.5)]
    assert advice[0].tolist() == pytest.approx([e / sum(expected) for e in expected])


@pytest.mark.parametrize(
    ("least", "alpha", "who"),
    [(1, 0.3, [0, 1]), (1, 0.9, [0]), (3, 0.3, [0, 1, 2]), (3, 0.2, [0, 1, 2]), (4, 0.05, [0, 1, 2, 3]), (9, 0.5, [0, 1, 2, 3])],
)
def test_the_effective_pool_halves_alpha_until_it_holds_enough(least, alpha, who):
    advice = torch.tensor([[0.6, 0.1, 0.17, 0.001], [0.2, 0.4, 0.0, 0.0]], dtype=torch.float64)
    threshold = alpha
    while int((advice.max(0).values >= threshold).sum()) < min(least, 4):
        threshold /= 2
    expected = torch.nonzero(advice.max(0).values >= threshold).flatten().tolist()
    assert expected == who
    assert torch.nonzero(bandits.effective_pool(advice, least, alpha)).flatten().tolist() == expected


def test_the_effective_pool_of_advice_that_vanishes_is_everyone():
    assert bandits.effective_pool(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), 2).tolist() == [True] * 3


def test_advice_after_earlier_draws_is_renormalised():
    columns = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert bandits.after_earlier(columns).tolist() == [[0.5, 0.5, 1.0], [0.0, 1.0, 0.0]]


def test_exp4_draws_from_its_mixture_and_updates_as_the_paper_says():
    exp4 = began(Exp4(gamma=0.2, alpha=1.0, beta=3.0, depth=2), arms=2, pool=8)
    exp4.log_weights = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    ballot = a_ballot(5, Ordered(0, 1), Ordered(4, 1))
    query, p, _ = played(exp4, ballot)
    pool = bandits.effective_pool(bandits.rank_advice(ballot, 2, 1.0, 3.0), 1)
    laws = bandits.rank_advice(ballot, 2, 1.0, 3.0) * pool
    laws = laws / laws.sum(1, keepdim=True)
    n = int(pool.sum())
    expected = 0.8 * (0.25 * laws[0] + 0.75 * laws[1]) + 0.2 * pool / n
    torch.testing.assert_close(p.sum(1), expected, rtol=1e-4, atol=1e-7)
    assert (p.sum(1)[pool] >= 0.2 / n - 1e-7).all()
    q = int(query.indices[0])
    assert float(query.propensity[0]) == pytest.approx(float(expected[q]), rel=1e-4)
    logged = exp4.update(led_to(query, 0.6))
    w = [v * math.exp(0.2 / n * float(laws[k, q]) * 0.6 / float(expected[q])) for k, v in enumerate([1.0, 3.0])]
    assert list(logged.values()) == pytest.approx([w[0] / sum(w), w[1] / sum(w)], rel=1e-5)


@pytest.mark.parametrize("cls", [Exp4, RExp4])
def test_a_single_expert_is_its_advice_smoothed(cls):
    exp4 = began(cls(gamma=0.3), arms=1, pool=30)
    ballot = a_ballot(30, Ordered(3, 1))
    _, p, _ = played(exp4, ballot)
    advice = bandits.rank_advice(ballot, 50)
    pool = bandits.effective_pool(advice, 1)
    law = advice[0] * pool / (advice[0] * pool).sum()
    torch.testing.assert_close(p[:, 0], 0.7 * law + 0.3 * pool / pool.sum(), rtol=1e-4, atol=1e-7)


def test_a_single_expert_of_comb_needs_no_exploration():
    comb = began(Comb(beta=2.0), arms=1)
    ballot = a_ballot(3, Scored(5.0, 3.0, 4.0))
    _, p, _ = played(comb, ballot)
    torch.testing.assert_close(p.T, bandits.score_advice(ballot, 2.0), rtol=1e-4, atol=1e-7)


def test_a_batch_is_credited_purchase_by_purchase():
    exp4 = began(Exp4(gamma=0.5), arms=2, batch=3)
    ballot = a_ballot(12, Ordered(0, 1, 2), Ordered(9, 10, 11), budget=3)
    query, _, _ = played(exp4, ballot)
    _, laws, gamma, n = exp4._advice
    gains, taken = [0.0, 0.0], [0.0, 0.0]
    for q, propensity in zip(query.indices.tolist(), query.propensity.tolist(), strict=True):
        for k in range(2):
            gains[k] += gamma / n * 0.7 * float(laws[k, q]) / (1 - taken[k]) / propensity
            taken[k] += float(laws[k, q])
    w = [math.exp(g) for g in gains]
    assert list(exp4.update(led_to(query, 0.7)).values()) == pytest.approx([w[0] / sum(w), w[1] / sum(w)], rel=1e-5)


def test_importance_weighted_advice_is_an_unbiased_estimate_of_what_an_expert_earns():
    exp4 = began(Exp4(gamma=0.5), arms=2)
    ballot = a_ballot(6, Ordered(0, 1), Ordered(5, 4))
    worth = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.3, 0.7], dtype=torch.float64)
    totals = torch.zeros(2, dtype=torch.float64)
    exp4.learn = lambda gains, rate, round: totals.add_(gains)
    for seed in range(1500):
        query, _, _ = played(exp4, ballot, seed)
        exp4.update(led_to(query, float(worth[query.indices[0]])))
    torch.testing.assert_close(totals / 1500, exp4._advice.laws @ worth, atol=0.05, rtol=0)


def test_rexp4_starts_again_after_every_period_and_without_one_is_exp4():
    ballots = [a_ballot(8, Ordered(0, 1), Ordered(6, 7), index=i) for i in range(1, 10)]
    selectors = {"never": RExp4(period=None), "three": RExp4(period=3), "exp4": Exp4()}
    path = {name: [] for name in selectors}
    for name, selector in selectors.items():
        began(selector, arms=2)
        for t, ballot in enumerate(ballots, 1):
            query, _, _ = played(selector, ballot)
            selector.update(led_to(query, 1.0 if query.indices[0] < 4 else 0.5, t))
            path[name].append(selector.standing().tolist())
    assert path["never"] == path["exp4"]
    assert [path["three"][t] for t in (2, 5, 8)] == [[0.5, 0.5]] * 3
    assert path["three"][:2] == path["exp4"][:2]
    assert path["three"][0] != [0.5, 0.5]


def test_comb_finds_its_exploration_by_doubling():
    comb = began(Comb(), arms=4)
    factor = math.log(4) / (math.e - 1)
    assert factor < 1
    assert comb.explore(10) == 0.5  # 10 (factor - 1) < 0: the first guess is exceeded by nothing at all
    comb.log_weights = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    comb.gains = torch.tensor([10 * (4 * factor - 2) - 0.01, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert comb.explore(10) == 0.5
    assert comb.log_weights[0] == 1.0
    comb.gains += 0.02
    assert comb.explore(10) == 0.25
    assert comb.log_weights.tolist() == [0.0] * 4
    g_max = 10 * factor * 4**2
    assert comb.explore(10) == pytest.approx(math.sqrt(10 * math.log(4) / ((math.e - 1) * g_max)))


def test_comb_counts_estimated_gains():
    comb = began(Comb(beta=2.0), arms=2, pool=3)
    query, p, _ = played(comb, a_ballot(3, Scored(1.0, 0.0, 0.5), Scored(0.0, 1.0, 0.2)))
    q = int(query.indices[0])
    comb.update(led_to(query, 0.5))
    laws = bandits.score_advice(a_ballot(3, Scored(1.0, 0.0, 0.5), Scored(0.0, 1.0, 0.2)), 2.0)
    assert comb.gains.tolist() == pytest.approx((laws[:, q] * 0.5 / p.sum(1)[q]).tolist(), rel=1e-4)


@pytest.mark.parametrize("cls", EXPERTS)
@pytest.mark.parametrize(("count", "budget"), [(1, 1), (4, 4), (5, 3)])
def test_small_pools_and_whole_pools_are_bought(cls, count, budget):
    selector = began(cls(), arms=2, pool=count)
    equal = Scored(*[1.0] * count)
    query, p, batch = played(selector, a_ballot(count, equal, equal, budget=budget))
    assert len(set(query.indices.tolist())) == budget
    assert float(p.sum()) == pytest.approx(1)
    assert batch.weights.tolist() == pytest.approx([0.5, 0.5])
    logged = selector.update(led_to(query, 1.0))
    assert all(math.isfinite(value) for value in logged.values())


# Planted tasks


def arm_shares(cls, means, rounds, seed, shuffled=False, **options):
    """Play planted rewards; return the arm pulled in each round. `means` is a list of phases."""
    bandit = began(cls(**options), arms=len(means[0]), rounds=rounds, seed=seed)
    draw, pulls, ballot = Streams(seed)("rewards"), [], a_ballot(2, *[Ordered(0)] * len(means[0]))
    for t in range(1, rounds + 1):
        ballot.round.index = t
        arm = bandit.act({}, ballot)
        phase = means[(t - 1) * len(means) // rounds]
        mean = sum(phase) / len(phase) if shuffled else phase[arm]
        bandit.update(pulled(arm, float(torch.rand((), generator=draw) < mean)))
        pulls.append(arm)
    return pulls


def expert_shares(cls, means, rounds, seed, shuffled=False, **options):
    """The same where a purchase is good if it comes from the good expert's candidates; returns the winner of each purchase."""
    arms = len(means[0])
    selector = began(cls(**options), arms=arms, rounds=rounds, seed=seed, pool=2 * arms)
    draw, pulls = Streams(seed)("rewards"), []
    strategies = [Scored(*[float(i // 2 == k) * (1 + 0.1 * (i % 2)) for i in range(2 * arms)]) for k in range(arms)]
    ballot = a_ballot(2 * arms, *strategies)
    for t in range(1, rounds + 1):
        ballot.round.index = t
        query, _, _ = played(selector, ballot, seed)
        arm = int(query.indices[0]) // 2
        phase = means[(t - 1) * len(means) // rounds]
        mean = sum(phase) / len(phase) if shuffled else phase[arm]
        selector.update(led_to(query, float(torch.rand((), generator=draw) < mean), t))
        pulls.append(arm)
    return pulls


PLANTED = [
    (arm_shares, Exp3, {}), (arm_shares, UCB, {}), (arm_shares, SlidingWindowUCB, {"window": 100}), (arm_shares, Thompson, {}),
    (arm_shares, SoftmaxGain, {}), (expert_shares, Exp4, {"gamma": 0.3}), (expert_shares, RExp4, {"gamma": 0.3, "period": 75}),
    (expert_shares, Comb, {"beta": 3.0}),
]  # fmt: skip


def shares(play, cls, means, rounds, options, since, **changes):
    """Mean shares of the arms from a point of the campaign on, over ten seeds."""
    pulls = [play(cls, means, rounds, seed, **options, **changes)[int(since * rounds) :] for seed in range(10)]
    return [sum(p.count(arm) / len(p) for p in pulls) / 10 for arm in range(len(means[0]))]


@pytest.mark.parametrize(("play", "cls", "options"), PLANTED, ids=[p[1].__name__ for p in PLANTED])
def test_the_planted_strategy_gets_more_than_half_by_the_last_third(play, cls, options):
    assert shares(play, cls, [[0.0, 1.0, 0.0]], 150, options, since=2 / 3)[1] > 0.5


@pytest.mark.parametrize(("play", "cls", "options"), PLANTED, ids=[p[1].__name__ for p in PLANTED])
def test_nothing_is_learned_from_rewards_that_do_not_depend_on_the_choice(play, cls, options):
    found = shares(play, cls, [[0.0, 1.0, 0.0]], 100, options, since=0.0, shuffled=True)
    assert max(found) < 1 / 3 + 0.15


@pytest.mark.parametrize(
    ("play", "forgets", "stationary"),
    [
        (arm_shares, (SlidingWindowUCB, {"window": 40}), (UCB, {})),
        (arm_shares, (Thompson, {"discount": 0.95}), (Thompson, {})),
        (expert_shares, (RExp4, {"gamma": 0.3, "period": 60}), (Exp4, {"gamma": 0.3})),
    ],
    ids=["sw_ucb", "discounted thompson", "rexp4"],
)
def test_who_forgets_follows_a_change_that_its_stationary_twin_sleeps_through(play, forgets, stationary):
    phases = [[1.0, 0.0], [0.4, 0.8]]
    quick, slow = (shares(play, cls, phases, 240, options, since=0.5)[1] for cls, options in (forgets, stationary))
    assert quick > 0.5
    assert quick > slow + 0.1


@pytest.mark.parametrize("cls", ARMS)
def test_one_seed_one_sequence_of_pulls(cls):
    first, again, other = (arm_shares(cls, [[0.2, 0.8, 0.5]], 40, seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exp3(gamma=0.0), "exp3: expected gamma"), (lambda: Exp4(gamma=1.5), "exp4: expected gamma"),
        (lambda: RExp4(period=0), "rexp4: expected a period"), (lambda: RExp4(gamma=0), "rexp4: expected gamma"),
        (lambda: Comb(beta=0), "comb: expected beta"), (lambda: UCB(exploration=-1), "ucb: expected exploration"),
        (lambda: SlidingWindowUCB(window=0), "sw_ucb: expected window"),
        (lambda: Thompson(discount=0), "thompson: expected prior"),
        (lambda: SoftmaxGain(temperature=0), "softmax_gain: expected step"),
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
