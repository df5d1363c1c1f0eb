"""AutoAL against the behavioural checks of a correct implementation: gradients, stop-gradients, search, negative control."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alenv import library, ops
from alenv.campaign import Plan
from alenv.env import ActiveLearningEnv
from alenv.heads import StageHead, ranking_loss
from alenv.nets.mlp import mlp
from alenv.nets.resnet import resnet
from alenv.nets.small_cnn import small_cnn
from alenv.problem import Problem, assemble
from alenv.runner import Runner
from alenv.selector import Context, Transition
from alenv.selectors.autoal import (
    AutoAL,
    combined_scores,
    count_penalty,
    cut,
    departure,
    fit_loss,
    literal_selection,
    printed_penalty,
    search_loss,
    soft_selection,
    split_halves,
    visits,
)
from alenv.settings.standard import standard
from alenv.strategy import ScoreStrategy
from alenv.streams import Streams
from alenv.task import Examples, Source, number_ids
from alenv.toy import blobs
from alenv.trainer import Trainer

B, K, SHARE = 256, 5, 0.1
MARKS = math.ceil(B * SHARE)
DEFAULT = AutoAL()


def planted(seed, informative=0, lowest=False, candidates=K):
    """Inputs, losses and votes: one candidate marks the highest (or lowest) losses, the others mark at random."""
    generator = Streams(seed)("planted")
    inputs, losses = torch.randn(B, 8, generator=generator), 2 * torch.rand(B, generator=generator).exp()
    votes = torch.zeros(B, candidates, dtype=torch.bool)
    for k in range(candidates):
        votes[torch.randperm(B, generator=generator)[:MARKS], k] = True
    order = losses.argsort(descending=not lowest)
    votes[:, informative] = False
    votes[order[:MARKS], informative] = True
    return inputs, losses, votes


def searched(seed, inputs, losses, votes, steps=150, regularizer=0.0):
    """Mean weights, and the share of the true top losses among the top scores, after training a small SearchNet."""
    with Streams(seed).scoped("search_net"):
        net = mlp((8,), K, width=64, depth=1, dropout=0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=DEFAULT.search_lr, momentum=0.9)
    for _ in range(steps):
        logits = net(inputs)
        selected = soft_selection(combined_scores(logits.softmax(1), votes), MARKS / B, DEFAULT.slope)
        loss = search_loss(selected, losses, losses.std()) + regularizer * count_penalty(selected, MARKS)
        loss = loss + DEFAULT.prior / B * departure(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        weights = net(inputs).softmax(1)
    top = combined_scores(weights, votes).argsort(descending=True)[:MARKS]
    true = losses.argsort(descending=True)[:MARKS]
    return weights.mean(0), len(set(top.tolist()) & set(true.tolist())) / MARKS


# check 1


def test_the_search_gradient_is_real_and_zero_exactly_where_nothing_is_marked():
    _, losses, votes = planted(0, candidates=7)
    weights = torch.rand(B, 7, generator=Streams(0)("w")).requires_grad_()
    selected = soft_selection(combined_scores(weights, votes), MARKS / B, 10.0)
    search_loss(selected, losses).backward()
    assert weights.grad is not None
    assert weights.grad.norm() > 0
    assert (weights.grad[~votes] == 0).all()


def test_the_search_gradient_agrees_with_finite_differences_while_the_threshold_is_held():
    _, losses, votes = planted(1, candidates=7)
    losses = losses.double()
    weights = torch.rand(B, 7, generator=Streams(1)("w"), dtype=torch.float64)
    scores = combined_scores(weights, votes)
    threshold, spread = ops.upper_quantile(scores, MARKS / B), scores.std(unbiased=False)

    def value(w):
        selected = torch.sigmoid(10 * (combined_scores(w, votes) - threshold) / spread)
        return search_loss(selected, losses) + 0.3 * count_penalty(selected, MARKS)

    free = weights.clone().requires_grad_()
    selected = soft_selection(combined_scores(free, votes), MARKS / B, 10.0)
    (search_loss(selected, losses) + 0.3 * count_penalty(selected, MARKS)).backward()
    marked = votes.nonzero()
    for row, column in marked[:: len(marked) // 10].tolist():
        step = torch.zeros_like(weights)
        step[row, column] = 1e-6
        numeric = (value(weights + step) - value(weights - step)) / 2e-6
        assert float(free.grad[row, column]) == pytest.approx(float(numeric), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("make", "shape"), [(mlp, (8,)), (small_cnn, (1, 8, 8)), (resnet, (1, 8, 8))])
def test_the_search_gradient_reaches_the_first_stage_of_search_net(make, shape):
    _, losses, votes = planted(2)
    inputs = torch.randn(B, *shape, generator=Streams(2)("x"))
    with Streams(2).scoped("net"):
        net = make(shape, K, dropout=0.0)
    selected = soft_selection(combined_scores(net(inputs).softmax(1), votes), MARKS / B, 10.0)
    search_loss(selected, losses).backward()
    assert next(net.body.parameters()).grad.norm() > 0


# check 2


def test_search_loss_stops_at_fit_net_and_fit_loss_stops_at_search_net():
    inputs, _, votes = planted(3)
    with Streams(3).scoped("nets"):
        search_net, fit_net = mlp((8,), K), mlp((8,), 3)
    targets = torch.arange(B) % 3
    selected = soft_selection(combined_scores(search_net(inputs).softmax(1), votes), MARKS / B, 10.0)
    losses = F.cross_entropy(fit_net(inputs), targets, reduction="none")
    search_loss(selected, losses).backward(retain_graph=True)
    assert all(p.grad is None for p in fit_net.parameters())
    assert any(p.grad is not None and p.grad.norm() > 0 for p in search_net.parameters())
    search_net.zero_grad()
    fit_loss(selected, losses).backward()
    assert all(p.grad is None for p in search_net.parameters())
    assert any(p.grad.norm() > 0 for p in fit_net.parameters())


def test_steps_leave_every_net_but_their_own_without_a_gradient():
    env, selector = started(initial=60, batch=10)
    fit_net, batches = selector._rehearse(env.ballot)
    selector._loss_optimizer(batches[0].inputs)
    nets = {"fit": fit_net, "search": selector.search_net, "module": selector.loss_module, "task": env.campaign.model}

    def touched(step):
        for net in nets.values():
            net.zero_grad()
        step()
        return {name for name, net in nets.items() if any(p.grad is not None and p.grad.any() for p in net.parameters())}

    search = torch.optim.SGD(selector.search_net.parameters(), lr=0.0)
    fit = torch.optim.SGD(fit_net.parameters(), lr=0.0)
    losses = F.cross_entropy(fit_net(batches[0].inputs), batches[0].targets, reduction="none")  # with its graph
    assert touched(lambda: selector._step_search(batches[0], losses, search, torch.tensor(1.0), 0.0)) == {"search"}
    assert touched(lambda: selector._step_fit(fit_net, batches[0], fit)) == {"fit"}


def test_threshold_and_spread_carry_no_gradient():
    scores = torch.rand(40, generator=Streams(0)("s"), dtype=torch.float64).requires_grad_()
    soft_selection(scores, 0.1, 10.0)[7].backward()
    others = torch.ones(40, dtype=torch.bool)
    others[7] = False
    assert (scores.grad[others] == 0).all()


# checks 3 and 4


@pytest.mark.parametrize("seed", range(5))
def test_the_informative_candidate_wins_and_uninformed_search_finds_nothing(seed):
    inputs, losses, votes = planted(seed)
    weights, precision = searched(seed, inputs, losses, votes)
    assert weights[0] > 0.6
    assert (weights[1:] < 0.2).all()
    assert precision >= 0.9
    lot = torch.randperm(B, generator=Streams(seed)("shuffle"))
    control, _ = searched(seed, inputs, losses[lot], votes)
    assert (control <= 0.6).all()
    assert weights[0] - control[0] >= 0.3


@pytest.mark.parametrize("seed", range(5))
def test_the_informative_candidate_wins_with_the_regulariser_switched_on(seed):
    weights, precision = searched(seed, *planted(seed), regularizer=0.1)
    assert weights[0] > 0.6
    assert precision >= 0.9


def test_over_seeds_uninformed_search_stays_near_equal_weights():
    means = []
    for seed in range(10):
        inputs, losses, votes = planted(seed)
        lot = torch.randperm(B, generator=Streams(seed)("shuffle"))
        means.append(searched(seed, inputs, losses[lot], votes)[0])
    mean = torch.stack(means).mean(0)
    assert (mean >= 0.1).all()
    assert (mean <= 0.35).all()
    found = torch.stack([searched(seed, *planted(seed))[0] for seed in range(5)]).mean(0)
    assert found[0] - mean[0] >= 0.4


def test_which_column_is_informative_does_not_matter():
    inputs, losses, votes = planted(0, informative=3)
    weights, _ = searched(0, inputs, losses, votes)
    assert weights.argmax() == 3
    assert weights[3] > 0.6


def test_a_candidate_that_marks_the_lowest_losses_ends_lowest():
    inputs, losses, votes = planted(0, lowest=True)
    weights, _ = searched(0, inputs, losses, votes)
    assert weights.argmin() == 0


# check 5


def test_permuting_a_batch_permutes_everything_alike():
    inputs, _, votes = planted(4)
    with Streams(4).scoped("net"):
        net = mlp((8,), K).eval()
    lot = torch.randperm(B, generator=Streams(4)("lot"))

    with Streams(5).scoped("module"):
        fit_net, module = mlp((8,), 3).eval(), StageHead([s.shape[1:] for s in net.stages(inputs[:1])[0]])
    targets = torch.arange(B) % 3

    def everything(rows):
        weights = net(inputs[rows]).softmax(1)
        scores = combined_scores(weights, votes[rows])
        entropies = F.cross_entropy(fit_net(inputs[rows]), targets[rows], reduction="none")
        predicted = module(net.stages(inputs[rows])[0])[:, 0]
        return weights, scores, soft_selection(scores, SHARE, 10.0), entropies, predicted

    with torch.no_grad():
        for straight, permuted in zip(everything(torch.arange(B)), everything(lot), strict=True):
            assert torch.allclose(straight[lot], permuted, atol=1e-5)


def test_marks_belong_to_the_rows_they_were_computed_for():
    """Each candidate's marks, mapped back by row, are what it selects among the same rows in another order."""
    env, selector = started(["margin", "entropy", "coreset"], initial=60)
    fit_net, batches = selector._rehearse(env.ballot)
    first, second = torch.arange(30), torch.arange(30, 60)
    lot = torch.randperm(30, generator=Streams(4)("lot"))
    straight, permuted = (selector._mark(env.ballot, fit_net, rows, first) for rows in (second, second[lot]))
    assert torch.equal(straight[lot], permuted)
    assert not torch.equal(straight, permuted)
    for batch in batches:
        assert torch.equal(batch.inputs, env.ballot.round.labeled_inputs[batch.rows])
        assert torch.equal(batch.targets, env.ballot.round.labels[batch.rows])
        assert (batch.votes.sum(0) == round(batch.share * len(batch.rows))).all()


# check 6


def test_the_count_penalty_is_zero_at_its_target_symmetric_and_growing():
    def penalty(count):
        return float(count_penalty(torch.full((100,), count / 100), 20.0))

    assert penalty(20) == pytest.approx(0, abs=1e-9)
    assert penalty(15) == pytest.approx(penalty(25), rel=1e-4)
    assert penalty(30) > penalty(25) > penalty(21)


@pytest.mark.parametrize("start", [0.2, 1.0, 5.0, 7.0])
def test_the_count_penalty_alone_brings_free_scores_to_the_target(start):
    target = 25.6
    share = min(0.95, start * target / B)
    logits = torch.full((B,), math.log(share / (1 - share))).requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=20.0, momentum=0.0)
    for _ in range(400):
        loss = count_penalty(torch.sigmoid(logits), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(torch.sigmoid(logits).sum().detach()) == pytest.approx(target, rel=0.2)


@pytest.mark.parametrize("count", [5.0, 60.0])
def test_the_slope_of_the_search_loss_in_the_soft_count_has_the_sign_of_the_excess(count):
    selected = torch.full((B,), count / B).requires_grad_()
    (search_loss(selected, torch.ones(B)) + count_penalty(selected, 25.6)).backward()
    assert torch.sign(selected.grad.sum()) == math.copysign(1, count - 25.6)


def test_the_prior_is_the_divergence_from_equal_weights():
    assert float(departure(torch.full((3, 4), 7.0))) == pytest.approx(0, abs=1e-6)
    assert float(departure(60 * torch.eye(4))) == pytest.approx(math.log(4))
    mixed = torch.tensor([[60.0, 60.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert float(departure(mixed)) == pytest.approx(0.5 * math.log(2))


def test_a_loss_module_far_off_does_not_blow_the_body_up():
    _, selector = started(initial=60, batch=10)
    env = started(initial=60, batch=10)[0]
    fit_net, batches = selector._rehearse(env.ballot)
    optimizer = selector._loss_optimizer(batches[0].inputs)
    with torch.no_grad():
        selector.loss_module.joined.weight.mul_(1e6)
    before = torch.cat([p.detach().flatten() for p in selector.search_net.body.parameters()])
    for _ in range(20):
        selector._step_predict(batches[0], selector._judge(fit_net, batches[0]), optimizer)
    after = torch.cat([p.detach().flatten() for p in selector.search_net.body.parameters()])
    assert float((after - before).norm()) <= 20 * 10 * selector.loss_lr  # momentum .9 makes of a bounded gradient at most ten


def test_weights_that_vanish_have_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0, -200.0]]).requires_grad_()
    departure(logits).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("count", "low", "high"), [(25.0, 0.0, 1e-6), (20.0, 0.3, 0.5), (60.0, 0.49, 0.5)])
def test_the_printed_penalty_is_bounded_zero_at_its_target_and_flat_far_away(count, low, high):
    selected = torch.full((B,), count / B).requires_grad_()
    value = printed_penalty(selected, 25.0)
    value.backward()
    assert low <= float(value.detach()) <= high + 1e-6
    if count == 60.0:
        assert float(selected.grad.abs().max()) < 1e-6


def test_the_printed_penalty_is_symmetric_grows_and_falls_towards_its_target():
    def value(count):
        return float(printed_penalty(torch.full((B,), count / B), 25.0))

    for distance in (1.0, 3.0, 8.0):
        assert value(25 - distance) == pytest.approx(value(25 + distance), abs=1e-5)
        assert value(25 + distance) == pytest.approx(abs(1 / (1 + math.exp(0.5 * distance)) - 0.5), abs=1e-5)  # eq. 9
    assert value(26) < value(27) < value(30) < 0.5
    for count in (22.0, 28.0):
        selected = torch.full((B,), count / B).requires_grad_()
        printed_penalty(selected, 25.0).backward()
        assert torch.sign(selected.grad.sum()) == math.copysign(1, count - 25)


# check 7


THRESHOLDS = [ops.upper_quantile, ops.mixture_upper_quantile]


@pytest.mark.parametrize("quantile", THRESHOLDS)
def test_the_share_above_the_threshold_is_the_one_asked_for_and_grows_with_it(quantile):
    scores = torch.randn(500, generator=Streams(0)("scores"))
    thresholds = [quantile(scores, share) for share in (0.01, 0.05, 0.1, 0.3)]
    for threshold, share in zip(thresholds, (0.01, 0.05, 0.1, 0.3), strict=True):
        above = float((scores > threshold).float().mean())
        assert 0.5 * share <= above <= 2 * share
    assert thresholds == sorted(thresholds, reverse=True)


@pytest.mark.parametrize("quantile", THRESHOLDS)
def test_selection_ignores_the_scale_and_offset_of_scores(quantile):
    scores = torch.rand(500, generator=Streams(1)("scores"), dtype=torch.float64)
    expected = soft_selection(scores, 0.1, 10.0, quantile)
    assert torch.allclose(soft_selection(1e-3 * scores, 0.1, 10.0, quantile), expected, atol=1e-6)
    assert torch.allclose(soft_selection(scores + 5, 0.1, 10.0, quantile), expected, atol=1e-6)


@pytest.mark.parametrize("quantile", THRESHOLDS)
@pytest.mark.parametrize(
    "scores", [torch.zeros(50), torch.ones(50), torch.linspace(1e-40, 5e-40, 50), torch.tensor([0.0, 1.0] * 25), torch.zeros(2)]
)
def test_degenerate_scores_neither_crash_nor_give_nan(scores, quantile):
    scores = scores.clone()
    selected = soft_selection(scores.requires_grad_(), 0.1, 10.0, quantile)
    (search_loss(selected, torch.rand(len(scores), generator=Streams(0)("l"))) + count_penalty(selected, 2.0)).backward()
    assert torch.isfinite(selected).all()
    assert torch.isfinite(scores.grad).all()


# checks 9 and 10


def problem(strategies, votes=1.0, initial=30, batch=10, rounds=2, source=None):
    built = library.strategies(strategies)
    plan = Plan(initial, batch, rounds, "sample_mix", votes=votes)
    return Problem(source or blobs(3), standard, library.build("net", "linear"), Trainer(device="cpu"), built, plan)


def started(strategies=("margin", "kmeans", "bald"), **kwargs):
    """An environment after reset and a selector that has begun."""
    selector = AutoAL(votes=kwargs.get("votes", 1.0), split=kwargs.pop("split", "random"), fit_epochs=20, steps=30)
    env = ActiveLearningEnv(problem=problem(list(strategies), **kwargs))
    env.reset(seed=1)
    campaign = env.campaign
    selector.begin(
        Context(
            tuple(campaign.strategies),
            campaign.task.num_classes,
            len(campaign.pool),
            campaign.plan,
            campaign.streams,
            env.problem.trainer,
            lambda outputs: env.problem.make_net(campaign.task, outputs),
        )
    )
    return env, selector


def test_a_single_candidate_with_as_many_votes_as_the_batch_is_that_candidate():
    env, selector = started(["margin"])
    wish = env.ballot.round.candidates[env.ballot.wish("margin")]
    env.step(selector.act({}, env.ballot))
    assert sorted(env.query.indices.tolist()) == sorted(wish.tolist())


def test_identical_candidates_buy_what_each_of_them_would():
    env, selector = started([{"name": "variation_ratio", "mode": "single"}, "least_confidence"])
    wish = env.ballot.round.candidates[env.ballot.wish("least_confidence")]
    env.step(selector.act({}, env.ballot))
    assert sorted(env.query.indices.tolist()) == sorted(wish.tolist())


@pytest.mark.parametrize("votes", [1.0, 2.5])
def test_what_is_bought_lies_in_the_union_of_the_marks(votes):
    env, selector = started(votes=votes)
    ballot = env.ballot
    marked = ballot.votes(math.ceil(votes * 10)).any(0)
    union = set(ballot.round.candidates[marked].tolist())
    env.step(selector.act({}, ballot))
    assert set(env.query.indices.tolist()) <= union


@pytest.mark.parametrize("initial", [2, 3, 7, 8, 9, 15, 21, 30, 41])
def test_every_size_of_labelled_set_works_and_buys_exactly_the_batch(initial):
    env, selector = started(initial=initial, batch=9, rounds=2)
    known = set(env.campaign.pool.order)
    observation = {}
    for _ in range(2):
        observation, *_ = env.step(selector.act(observation, env.ballot))
        bought = env.query.indices.tolist()
        assert len(set(bought)) == 9
        assert not set(bought) & known
        known |= set(bought)


@pytest.mark.parametrize(("examples", "size"), [(152, 137), (13_175, 12_975), (73_457, 73_257)])
def test_pools_of_every_size_give_exactly_the_batch_of_new_samples(examples, size):
    """37 at first and twice 50: all of the smallest pool."""
    env, selector = started(["margin", "entropy"], source=blobs(3, examples), initial=37, batch=50, split="age")
    known, observation = set(env.campaign.pool.order), {}
    assert len(env.campaign.pool) == size
    for _ in range(2):
        observation, *_ = env.step(selector.act(observation, env.ballot))
        bought = set(env.query.indices.tolist())
        assert len(bought) == len(env.query.indices) == 50
        assert not bought & known
        known |= bought
    assert set(env.campaign.pool.order) == known <= set(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 11, 64, 137])
def test_halves_are_disjoint_and_cover_the_labelled_set(size):
    first, second = split_halves(size, Streams(0)("halves"))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(size))
    assert 0 <= len(first) - len(second) <= 1


@pytest.mark.parametrize(("rows", "budget"), [(4, 20), (5, 1), (10, 20), (21, 7), (160, 20), (161, 21)])
def test_batches_of_the_second_half_are_even_disjoint_and_at_least_two(rows, budget):
    batches = cut(rows, budget, Streams(0)("cut"))
    sizes = {len(batch) for batch in batches}
    assert len(batches) >= 2
    assert len(sizes) == 1
    assert sizes.pop() % 2 == 0
    together = torch.cat(batches).tolist()
    assert len(set(together)) == len(together)
    assert max(together) < rows
    assert len(together) > rows - len(batches[0])


@pytest.mark.parametrize("batches", [2, 3, 8])
def test_fit_net_and_search_net_never_train_on_the_same_batch_in_one_turn(batches):
    pairs = list(visits(batches, 400, Streams(0)("visits")))
    assert len(pairs) == 400
    assert all(here != following for here, following in pairs)
    counts = np.bincount([here for here, _ in pairs[::3]], minlength=batches)
    assert counts.max() - counts.min() <= 0.5 * counts.mean() + 2


# check 12, and the loss-prediction module's part in checks 1, 2 and 5


def test_the_ranking_loss_is_zero_for_the_right_order_and_above_one_for_the_reverse():
    losses = torch.tensor([0.1, 2.0, 3.0, 0.5])
    assert float(ranking_loss(torch.tensor([0.0, 4.0, 6.0, 2.0]), losses)) == 0
    assert float(ranking_loss(torch.tensor([6.0, 2.0, 0.0, 4.0]), losses)) > 1


def test_the_ranking_loss_ignores_an_offset_and_equals_a_plain_loop():
    generator = Streams(0)("pairs")
    predicted, losses = torch.randn(10, generator=generator), torch.rand(10, generator=generator)
    terms = []
    for i in range(5):
        j = 9 - i
        sign = 1.0 if losses[i] > losses[j] else -1.0
        terms.append(max(0.0, 1.0 - sign * float(predicted[i] - predicted[j])))
    assert float(ranking_loss(predicted, losses)) == pytest.approx(sum(terms) / 5, rel=1e-5)
    assert float(ranking_loss(predicted + 7, losses)) == pytest.approx(sum(terms) / 5, rel=1e-4)
    assert float(ranking_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.9]))) == pytest.approx(2.0)
    assert float(ranking_loss(torch.tensor([0.0, 3.0]), torch.tensor([0.2, 0.9]))) == 0.0


def test_the_ranking_loss_stops_at_the_true_losses():
    predicted, losses = torch.zeros(4).requires_grad_(), torch.rand(4, generator=Streams(0)("l")).requires_grad_()
    ranking_loss(predicted, losses).backward()
    assert losses.grad is None
    assert predicted.grad.abs().sum() > 0


@pytest.mark.parametrize("shapes", [[[8, 7, 7], [16, 3, 3]], [[5]], [[4, 9], [6, 2, 2]]])
def test_the_loss_module_takes_stages_of_any_spatial_size(shapes):
    with Streams(0).scoped("module"):
        module = StageHead(shapes)
    stages = [torch.randn(6, *shape, generator=Streams(1)("stage")) for shape in shapes]
    assert module(stages).shape == (6, 1)


def test_the_loss_module_learns_to_rank_losses_that_depend_on_the_input():
    generator = Streams(2)("rank")
    inputs = torch.randn(400, 8, generator=generator)
    losses = (inputs[:, 0] + 0.5 * inputs[:, 1]).exp()
    with Streams(2).scoped("nets"):
        net, module = mlp((8,), K, width=32, depth=2, dropout=0.0), StageHead([[32], [32]], width=16)
    optimizer = torch.optim.SGD([*module.parameters(), *net.body.parameters()], lr=0.01, momentum=0.9)
    for step in range(200):
        rows = torch.randperm(300, generator=Streams(2)("rows", step))[:64]
        loss = ranking_loss(module(net.stages(inputs[rows])[0])[:, 0], losses[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        predicted = module(net.stages(inputs[300:])[0])[:, 0]
    ranks = [values.argsort().argsort().double() for values in (predicted, losses[300:])]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.5


def test_the_loss_prediction_step_moves_the_module_and_search_nets_body_and_nothing_else():
    env, selector = started(initial=60, batch=10)
    fit_net, batches = selector._rehearse(env.ballot)
    optimizer = selector._loss_optimizer(batches[0].inputs)
    nets = {"fit": fit_net, "search": selector.search_net, "module": selector.loss_module, "task": env.campaign.model}
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in nets.items()}
    fit_net.zero_grad()
    selector._step_predict(batches[0], selector._judge(fit_net, batches[0]), optimizer)
    assert all(p.grad is None or not p.grad.any() for p in fit_net.parameters())
    moved = {name: {k for k, v in net.state_dict().items() if not torch.equal(v, before[name][k])} for name, net in nets.items()}
    assert moved["fit"] == moved["task"] == set()
    assert moved["module"]
    assert moved["search"]
    assert all(name.startswith("body.") for name in moved["search"])


@pytest.mark.parametrize("option", [{"form": "literal"}, {"threshold": "mixture"}, {"penalty": "printed", "regularizer": 0.01}])
def test_the_printed_forms_run_a_campaign(option):
    config = {"selector": {"name": "autoal", "fit_epochs": 5, "steps": 12, **option}, "budget": {"rounds": 2}, "device": "cpu"}
    run = Runner.of(config).run()
    assert run.summary["bought"] == 60
    assert {"loss", "loss/fit", "loss/prediction"} <= set(run.rounds[-1].selector)


def test_the_literal_form_is_worked_out_by_hand():
    logits, votes = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([[True, False], [False, False]])
    selected = literal_selection(logits, votes, 0.5)
    first = 0.5 * (1 - 0.5) * 0.25 + 0.75 * (0 - 0.0) * 0.75
    second = 0.5 * (0 - 0.5) * 0.5 + 0.5 * (0 - 0.0) * 0.5
    assert selected.tolist() == pytest.approx([first, second])


@pytest.mark.parametrize("name", ["scorer", "form", "threshold", "penalty"])
def test_an_unknown_choice_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=f"autoal: expected {name} to be one of"):
        AutoAL(**{name: "magic"})


# checks 11 and 13


def test_one_seed_gives_one_run_and_another_seed_another_initial_set():
    config = {"selector": {"name": "autoal", "fit_epochs": 5, "steps": 12}, "budget": {"rounds": 2}, "device": "cpu"}
    runs = [Runner.of({**config, "seed": seed}).run() for seed in (0, 0, 1)]
    records = [[(r.queried, r.action, r.metrics) for r in run.rounds] for run in runs]
    assert records[0] == records[1]
    assert records[0][0][0] != records[2][0][0]
    margin = Runner.of({**config, "selector": {"name": "fixed"}, "seed": 0}).run()
    assert (margin.rounds[0].queried, margin.rounds[0].metrics) == (runs[0].rounds[0].queried, runs[0].rounds[0].metrics)


def test_fit_loss_is_the_share_of_selected_samples_times_their_mean_loss():
    losses = torch.rand(20, generator=Streams(0)("l"))
    selected = torch.zeros(20)
    selected[:5] = 1
    assert float(fit_loss(selected, losses)) == pytest.approx(5 / 20 * float(losses[:5].mean()), rel=1e-6)


def test_fit_net_knows_the_half_it_was_fitted_to_better_than_the_held_out_one():
    env, selector = started(initial=60, batch=10)
    selector.fit_epochs, selector.fit_goal = 100, 0.0
    round = env.ballot.round
    first, second = split_halves(len(round.labels), round.generator("autoal/split"))
    net = selector._fit(round, first)
    with torch.no_grad():
        seen = selector._losses(net, round.labeled_inputs[first], round.labels[first]).mean()
        unseen = selector._losses(net, round.labeled_inputs[second], round.labels[second]).mean()
    assert float(seen) < 0.7 * float(unseen)


def test_a_fit_step_lowers_the_loss_on_the_selected_samples():
    env, selector = started(initial=60, batch=10)
    fit_net, batches = selector._rehearse(env.ballot)
    batch = batches[0]
    with torch.no_grad():
        chosen = selector._selected(batch, selector._logits(batch)) > 0.5
        before = selector._losses(fit_net, batch.inputs, batch.targets)[chosen].mean()
    optimizer = torch.optim.Adam(fit_net.parameters(), lr=1e-3)
    for _ in range(3):
        selector._step_fit(fit_net, batch, optimizer)
    fit_net.eval()
    with torch.no_grad():
        assert selector._losses(fit_net, batch.inputs, batch.targets)[chosen].mean() < before


def test_search_net_moves_in_the_rotation_and_scoring_leaves_the_task_model_alone():
    env, selector = started()
    before = {name: value.clone() for name, value in selector.search_net.state_dict().items()}
    task_model = {name: value.clone() for name, value in env.campaign.model.state_dict().items()}
    selector.act({}, env.ballot)
    assert any(not torch.equal(before[name], value) for name, value in selector.search_net.state_dict().items())
    assert all(torch.equal(task_model[name], value) for name, value in env.campaign.model.state_dict().items())


def test_scores_that_nearly_tie_do_not_blow_search_net_up():
    """Each sample is marked by one candidate and all weigh alike: scores differ by next to nothing, and 1 / std(s) is huge."""
    env, selector = started(initial=60, batch=10)
    fit_net, batches = selector._rehearse(env.ballot)
    rows = torch.arange(len(batches[0].rows))
    votes = torch.nn.functional.one_hot(rows % 3, 3).bool()
    with torch.no_grad():
        selector.search_net.linear.weight.mul_(0.03)
    before = torch.cat([p.detach().flatten() for p in selector.search_net.parameters()])
    optimizer = torch.optim.SGD(selector.search_net.parameters(), lr=selector.search_lr)
    for _ in range(20):
        losses = selector._judge(fit_net, batches[0])
        selector._step_search(batches[0]._replace(votes=votes), losses, optimizer, torch.tensor(1.0), 0.0)
    after = torch.cat([p.detach().flatten() for p in selector.search_net.parameters()])
    assert torch.isfinite(after).all()
    assert float((after - before).norm()) <= 20 * selector.search_lr * 1.001


def test_the_candidates_see_a_model_that_was_not_trained_on_the_held_out_half():
    env, selector = started(["margin"])
    seen = []

    original = env.ballot.round._values["within"]

    def within(candidates, labeled, model):
        seen.append((model, set(candidates.tolist()) & set(labeled.tolist())))
        return original(candidates, labeled, model)

    env.ballot.round._values["within"] = within
    selector._rehearse(env.ballot)
    assert seen
    assert all(model is not env.campaign.model and not overlap for model, overlap in seen)


# halves by age


def played(rounds, strategies=("margin", "kmeans", "bald"), **kwargs):
    """An environment and a selector after some rounds, with what every candidate wished for in each of them."""
    env, selector = started(strategies, split="age", votes=2.0, initial=12, batch=10, rounds=rounds + 1, **kwargs)
    wished, observation = [], None
    for _ in range(rounds):
        ballot = env.ballot
        wished.append([set(ballot.round.candidates[ballot.wish(name, 20)].tolist()) for name in strategies])
        action = selector.act(observation, ballot)
        observation, *_ = env.step(action)
        record = env.campaign.records[-1]
        labels = env.campaign.pool.labels[env.query.indices]
        seen = Transition(observation, action, env.query, record, 0.0, observation, False, labels)
        selector.update(seen)
    return env, selector, wished


def test_the_younger_half_is_held_out_with_the_marks_it_got_on_the_pool():
    env, selector, wished = played(3)
    order = env.campaign.pool.order
    assert len(order) == 42
    _, batches = selector._rehearse(env.ballot)
    held_out = env.ballot.round.labeled_indices[torch.cat([batch.rows for batch in batches])]
    assert set(held_out.tolist()) <= set(order[-21:])
    votes = torch.cat([batch.votes for batch in batches])
    for index, marks in zip(held_out.tolist(), votes.tolist(), strict=True):
        bought_in = (order.index(index) - 12) // 10
        assert marks == [index in wishes for wishes in wished[bought_in]]


def test_fit_net_learns_from_the_older_half_only():
    env, selector, _ = played(2)
    seen = []
    fit = selector._fit
    selector._fit = lambda round, rows: seen.append(set(round.labeled_indices[rows].tolist())) or fit(round, rows)
    selector._rehearse(env.ballot)
    assert seen == [set(env.campaign.pool.order[:16])]


def test_before_the_first_purchase_there_is_nothing_to_learn_from_and_all_weigh_alike():
    env, selector = started(initial=24)
    selector.split = "age"
    assert selector._rehearse(env.ballot) is None
    assert np.ptp(selector.act(None, env.ballot)) == 0


def test_candidates_with_heads_can_be_judged_by_what_they_bought_but_not_on_random_halves():
    env, selector, _ = played(2, ("margin", "learning_loss"))
    assert selector._rehearse(env.ballot) is not None
    selector.split = "random"
    with pytest.raises(ValueError, match="split=random rehearses on a net without the heads of learning_loss; use split=age"):
        selector._rehearse(env.ballot)


def test_what_could_not_be_labelled_is_never_held_out():
    env, selector, _ = played(2)
    lost = env.campaign.pool.order[-4:]
    state = env.campaign.pool.state_dict()
    state["labels"][lost] = -2
    env.campaign.pool.load_state_dict(state)
    env.campaign._open(env.campaign.model, env.ballot.round.last)
    _, batches = selector._rehearse(env.ballot)
    held_out = env.ballot.round.labeled_indices[torch.cat([batch.rows for batch in batches])]
    assert not set(held_out.tolist()) & set(lost)


def test_marks_survive_a_restart():
    env, selector, _ = played(2)
    _, fresh = started(split="age", votes=2.0, initial=12, batch=10)
    fresh.load_state_dict(selector.state_dict())
    first, second = ([b.votes for b in s._rehearse(env.ballot)[1]] for s in (selector, fresh))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("search", "loss_prediction"), [(True, False), (False, True), (False, False)])
def test_only_the_steps_that_are_asked_for_move_search_net(search, loss_prediction):
    env, selector = started(initial=40)
    selector.search, selector.loss_prediction = search, loss_prediction
    before = {name: value.clone() for name, value in selector.search_net.state_dict().items()}
    selector.act(None, env.ballot)
    moved = {name for name, value in selector.search_net.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("body") for name in moved) == (search or loss_prediction)
    assert any(name.startswith("linear") for name in moved) == search


def test_every_cycle_redraws_a_random_split():
    env, selector = started(initial=40)
    selector.cycles = 2
    first, second = ({int(i) for b in selector._rehearse(env.ballot, cycle)[1] for i in b.rows} for cycle in range(2))
    assert first != second


def test_search_runs_on_images_with_nets_of_the_tasks_own_family():
    draw = Streams(0)("images")
    targets = torch.arange(72) % 3
    images = torch.randint(0, 255, (72, 1, 8, 8), generator=draw, dtype=torch.uint8)
    examples = Examples(images, targets, number_ids(72))
    source = Source("noise", examples, examples.take(torch.arange(12)), ("a", "b", "c"), torch.tensor(128.0), torch.tensor(64.0))
    plan = Plan(initial=12, batch=8, rounds=2)
    problem = assemble(
        dataset=source, net={"name": "resnet18"}, trainer=Trainer(device="cpu", epochs=1, min_steps=2), device="cpu", plan=plan,
        strategies=["margin", "kmeans"],
    )  # fmt: skip
    selector = AutoAL(fit_epochs=1, steps=3)
    run = Runner(problem, selector, seed=0).run()
    assert run.summary["bought"] == 28
    assert selector.search_net.body.__class__ is run.model.body.__class__
    assert {"loss", "loss/fit", "loss/prediction", "pool_weight/margin", "bought/kmeans"} <= set(run.rounds[-1].selector)


# check 14


class Sure(ScoreStrategy):
    """Sabotage: buys what the model is surest of."""

    needs = frozenset({"probs"})
    pointwise = True

    def score(self, round):
        return round.probs.max(1).values


@pytest.mark.slow
def test_a_sabotaged_candidate_loses_its_weight_and_autoal_does_not_fall_below_the_mean_of_its_candidates():
    candidates = {name: library.build("strategy", name) for name in ("margin", "kmeans")} | {"sure": Sure()}
    plan = Plan(initial=20, batch=20, rounds=12)

    def run(selector, strategies, seed):
        return Runner(assemble(strategies=strategies, plan=plan, device="cpu"), selector, seed=seed).run()

    autoal = [run(AutoAL(), candidates, seed) for seed in range(5)]
    fixed = [
        run(library.build("selector", "fixed", strategy=name), {name: one}, seed).summary["aubc"]
        for name, one in candidates.items()
        for seed in range(5)
    ]
    assert np.mean([found.summary["aubc"] for found in autoal]) > np.mean(fixed)
    assert np.mean([found.rounds[-1].selector["pool_weight/sure"] for found in autoal]) < 1 / 3
    assert np.mean([found.rounds[-1].action[2] for found in autoal]) < 1 / 3
