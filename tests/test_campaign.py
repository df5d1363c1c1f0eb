"""A campaign: the order of its calls, its accounting, one seed one result, and that hidden and test labels stay out of it."""

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alenv import library
from alenv.campaign import Campaign, Plan, Query, action_weights, weights_action
from alenv.model import TaskModel
from alenv.oracle import NoisyOracle
from alenv.problem import Problem, assemble
from alenv.record import Record
from alenv.rewards import EntropyGain, Gain, ImportanceWeightedAccuracy
from alenv.round import Round
from alenv.strategy import Strategy
from alenv.streams import Streams

DIGITS = library.build("dataset", "digits")
NAMES = ["least_confidence", "margin", "entropy", "kmeans", "bald", "variation_ratio", "mean_std", "uniform"]
MIXTURES = [{"action": "mix", "mixing": "quota"}, {"action": "mix", "mixing": "slots"}, {"action": "mix", "mixing": "blend"}]
KINDS: list[dict[str, Any]] = [{"action": "pick"}, *MIXTURES, {"action": "sample_mix"}, {"action": "sample_draw"}]


def named(kind: dict[str, Any]) -> str:
    return "-".join(kind.values())


def a_problem(
    strategies: Any = tuple(NAMES), validation: int = 100, reward: str = "gain", oracle: Any = "simulated", **plan: Any
) -> Problem:
    return assemble(
        dataset=DIGITS, strategies=strategies, validation=validation, reward=reward, oracle=oracle, device="cpu",
        plan=Plan(**({"initial": 20, "batch": 10, "rounds": 2} | plan)),
    )  # fmt: skip


def turn(problem: Problem, campaign: Campaign, query: Query) -> Record:
    """Buy, train and advance."""
    job = campaign.receive(problem.oracle.label(query.indices), problem.oracle.price(query.indices))
    return campaign.advance(problem.trainer.fit(job))


def play(problem: Problem, campaign: Campaign, actions: Sequence[Any] = ()) -> list[Record]:
    if not campaign.records:
        turn(problem, campaign, campaign.begin())
    for action in actions:
        turn(problem, campaign, campaign.choose(action))
    return campaign.records


def untrained(campaign: Campaign) -> TaskModel:
    with Streams(0).scoped("untrained"):
        return campaign._net()


def an_action(problem: Problem, seed: int = 0) -> Any:
    """A valid action of the problem's kind."""
    kind, count = problem.plan.action, len(problem.strategies)
    if kind == "pick":
        return seed % count
    shape = (count,) if kind == "mix" else (problem.pool_size, count)
    return 2 * torch.rand(shape, generator=Streams(seed)("action")) - 1


# Order of calls


def test_a_campaign_that_has_not_begun_can_only_begin() -> None:
    campaign = a_problem().campaign(0)
    assert not campaign.done
    with pytest.raises(ValueError, match="over or has not begun; call begin"):
        campaign.choose(0)
    with pytest.raises(ValueError, match="without an open question"):
        campaign.receive([0] * 20)
    with pytest.raises(ValueError, match="without a purchase"):
        campaign.advance(untrained(campaign))


def test_a_campaign_under_way_cannot_begin_again_nor_answer_unasked() -> None:
    problem = a_problem()
    campaign = problem.campaign(0)
    play(problem, campaign)
    with pytest.raises(ValueError, match="campaign under way; use choose"):
        campaign.begin()
    with pytest.raises(ValueError, match="without an open question"):
        campaign.receive([0] * 10)
    with pytest.raises(ValueError, match="without a purchase"):
        campaign.advance(campaign.model)


@pytest.mark.parametrize("started", [False, True])
def test_a_question_must_be_answered_before_the_model_of_its_answers_can_come(started: bool) -> None:
    problem = a_problem()
    campaign = problem.campaign(0)
    if started:
        play(problem, campaign)
    _ = campaign.choose(0) if started else campaign.begin()
    with pytest.raises(ValueError, match=r"without a purchase; call receive\(\) first"):
        campaign.advance(untrained(campaign))
    assert len(campaign.records) == int(started)


def test_answers_must_be_trained_on_before_the_next_question() -> None:
    problem = a_problem()
    campaign = problem.campaign(0)
    query = campaign.begin()
    job = campaign.receive(problem.oracle.label(query.indices))
    with pytest.raises(ValueError, match=r"call advance\(\) first"):
        campaign.begin()
    with pytest.raises(ValueError, match="were bought before"):
        campaign.receive(problem.oracle.label(query.indices))
    campaign.advance(problem.trainer.fit(job))
    query = campaign.choose(0)
    job = campaign.receive(problem.oracle.label(query.indices))
    with pytest.raises(ValueError, match=r"call advance\(\) first"):
        campaign.choose(0)
    assert campaign.advance(problem.trainer.fit(job)).queried == query.ids


def test_a_question_may_be_asked_again_before_it_is_answered() -> None:
    problem = a_problem()
    campaign = problem.campaign(0)
    assert torch.equal(campaign.begin().indices, campaign.begin().indices)
    play(problem, campaign)
    first, other, again = (campaign.choose(k) for k in (0, 3, 0))
    assert torch.equal(first.indices, again.indices)
    assert not torch.equal(first.indices, other.indices)
    turn(problem, campaign, again)
    assert campaign.pool.bought == 30


def test_a_campaign_that_is_over_takes_no_more_actions() -> None:
    problem = a_problem(rounds=1)
    campaign = problem.campaign(0)
    play(problem, campaign, [0])
    assert campaign.done
    with pytest.raises(ValueError, match="campaign that is over"):
        campaign.choose(0)


def test_without_rounds_only_the_initial_set_is_bought() -> None:
    problem = a_problem(rounds=0)
    campaign = problem.campaign(0)
    (record,) = play(problem, campaign)
    assert campaign.done
    assert (record.action, record.reward, record.chosen_by, record.propensity) == (None, None, (), ())


# Accounting


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_records_account_for_every_purchase(kind: dict[str, Any]) -> None:
    problem = a_problem(**kind)
    campaign = problem.campaign(0)
    records = play(problem, campaign, [an_action(problem, 1), an_action(problem, 2)])
    assert [r.round for r in records] == [0, 1, 2]
    assert [r.bought for r in records] == [r.labels for r in records] == [20, 30, 40]
    assert [r.cost for r in records] == [20.0, 30.0, 40.0]
    assert [len(r.queried) for r in records] == [20, 10, 10]
    assert len({id_ for r in records for id_ in r.queried}) == 40
    assert [campaign.task.ids[i] for i in campaign.pool.order] == [id_ for r in records for id_ in r.queried]
    assert torch.equal(campaign.pool.labels[campaign.pool.order], campaign.task.targets[campaign.pool.order])
    assert campaign.done
    for before, record in itertools.pairwise(records):
        assert record.reward == record.validation - before.validation
        assert sum(record.action) == pytest.approx(1, abs=1e-5)
        assert record.strategies == tuple(NAMES)
        assert len(record.chosen_by) == len(record.propensity) == 10
        assert set(record.chosen_by) <= {*NAMES, "uniform"}
        assert set(record.metrics) == {"accuracy", "macro_f1", "balanced_accuracy", "nll", "ece"}
        assert record.seconds == {}


def test_a_pick_is_recorded_one_hot_and_buys_that_strategys_wish() -> None:
    problem = a_problem()
    campaign = problem.campaign(0)
    play(problem, campaign)
    wish = campaign.round.candidates[campaign.ballot.wish("margin")]
    record = turn(problem, campaign, campaign.choose(NAMES.index("margin")))
    assert record.action == (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert record.chosen_by == ("margin",) * 10
    assert record.queried == tuple(campaign.task.ids[i] for i in wish.tolist())
    assert campaign.round.last.indices.tolist() == wish.tolist()
    assert torch.equal(campaign.round.last.labels, campaign.task.targets[wish])


def test_rows_of_a_mixture_per_sample_belong_to_pool_indices() -> None:
    problem = a_problem(["margin", "kmeans"], action="sample_mix", votes=1.0)
    campaign = problem.campaign(0)
    play(problem, campaign)
    wished = campaign.round.candidates[campaign.ballot.wish("kmeans")]
    others = campaign.round.candidates[campaign.ballot.wish("margin")]
    action = torch.tensor([0.0, 0.0]).repeat(problem.pool_size, 1)
    action[others] = action[wished] = torch.tensor([-1.0, 1.0])  # these few listen to k-means alone
    query = campaign.choose(action)
    assert set(query.indices.tolist()) == set(wished.tolist())
    assert query.weights.tolist() == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize(("initial", "batch", "rounds"), [(20, 10, 139), (1401, 1, 0), (1, 1400, 1)])
def test_a_budget_beyond_the_pool_is_refused_with_what_would_fit(initial: int, batch: int, rounds: int) -> None:
    total, most = initial + batch * rounds, max(0, (1400 - initial) // batch)
    with pytest.raises(ValueError, match=rf"buys {total} labels .* pool has 1400; at most {most} rounds fit"):
        a_problem(initial=initial, batch=batch, rounds=rounds)


@pytest.mark.parametrize("bad", [{"initial": 0}, {"batch": 0}, {"rounds": -1}, {"draws": 0}, {"votes": 0.5}])
def test_a_plan_that_buys_nothing_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Plan(**bad)


@pytest.mark.parametrize("reward", ["gain", "entropy_gain"])
@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_the_last_batch_is_smaller_when_the_pool_runs_out(kind: dict[str, Any], reward: str) -> None:
    problem = a_problem(validation=1465, initial=12, batch=11, rounds=2, reward=reward, **kind)
    problem = replace(problem, initial_ids=problem.task(0).ids[:17])  # 17 instead of 12: 35 - 17 - 11 = 7 are left
    campaign = problem.campaign(0)
    play(problem, campaign, [an_action(problem, 1)])
    assert campaign.ballot.budget == 7
    records = play(problem, campaign, [an_action(problem, 2)])
    assert [len(r.queried) for r in records] == [17, 11, 7]
    assert records[-1].bought == len(campaign.task) == 35
    assert len(campaign.round) == 0
    assert campaign.done


def test_abstentions_are_charged_count_as_bought_and_train_nothing() -> None:
    problem = a_problem(oracle=NoisyOracle(0.0, 0.4, unit_price=0.5))
    campaign = problem.campaign(0)
    records = play(problem, campaign, [7, 0])
    assert [r.bought for r in records] == [20, 30, 40]
    assert [r.cost for r in records] == [10.0, 15.0, 20.0]
    assert all(r.labels < r.bought for r in records)
    assert records[-1].labels == len(campaign.pool.labeled) == len(campaign.job().targets)
    assert len(campaign.pool.discarded) == 40 - records[-1].labels
    assert len({id_ for r in records for id_ in r.queried}) == 40


def test_an_initial_set_without_a_usable_label_is_refused() -> None:
    problem = a_problem(oracle=NoisyOracle(0.0, 1.0))
    campaign = problem.campaign(0)
    query = campaign.begin()
    with pytest.raises(ValueError, match="none of the 20 purchases has a usable label"):
        campaign.receive(problem.oracle.label(query.indices))


def test_a_given_initial_set_is_bought_and_sizes_the_plan() -> None:
    ids = a_problem().task(0).ids
    problem = assemble(dataset=DIGITS, validation=100, device="cpu", plan=Plan(rounds=1), initial=[ids[5], ids[700], ids[3]])
    assert problem.plan.initial == 3
    assert problem.campaign(0).begin().ids == (ids[5], ids[700], ids[3])
    with pytest.raises(ValueError, match=r"initial ids \['nowhere'\] are not in the pool"):
        replace(problem, initial_ids=["nowhere"]).campaign(0)
    with pytest.raises(ValueError, match=r"unknown initial 'first'; .*or give a list of ids"):
        assemble(dataset=DIGITS, initial="first")


# One seed, one result


def test_round_zero_is_a_function_of_the_seed_alone() -> None:
    def start(seed: int, **changes: Any) -> tuple[Record, dict[str, Tensor]]:
        problem = a_problem(**changes)
        campaign = problem.campaign(seed)
        return play(problem, campaign)[0], campaign.model.state_dict()

    first, weights = start(5)
    for changes in [*KINDS, {"strategies": ["uniform"]}, {"strategies": NAMES[::-1]}, {"batch": 3}, {"reward": "level"}]:
        record, same = start(5, **changes)
        assert replace(record, strategies=first.strategies) == first
        assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert start(6)[0].queried != first.queried


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_the_same_seed_and_actions_give_the_same_records_bit_for_bit(kind: dict[str, Any]) -> None:
    def once(seed: int) -> list[Record]:
        problem = a_problem(**kind)
        actions = [an_action(problem, 1), an_action(problem, 7)]
        return play(problem, problem.campaign(seed), actions)

    assert once(3) == once(3)
    assert once(3)[2].queried != once(4)[2].queried


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_repeats_itself_whoever_stands_beside_it(name: str) -> None:
    alone, among = a_problem([name]), a_problem()
    mine = play(alone, alone.campaign(0), [0, 0])
    theirs = play(among, among.campaign(0), [NAMES.index(name)] * 2)
    assert [r.queried for r in mine] == [r.queried for r in theirs]
    assert [r.metrics for r in mine] == [r.metrics for r in theirs]


@pytest.mark.parametrize("reward", ["normalized_gain", "terminal_area", "entropy_gain", "iw_accuracy"])
@pytest.mark.parametrize("kind", [KINDS[0], MIXTURES[1], KINDS[-1]], ids=named)
def test_a_state_taken_on_the_way_has_the_same_future(kind: dict[str, Any], reward: str) -> None:
    problem = a_problem(rounds=3, reward=reward, **kind)
    actions = [an_action(problem, seed) for seed in (1, 2, 3)]
    campaign = problem.campaign(0)
    play(problem, campaign, actions[:1])
    state = campaign.state_dict()
    state["records"] = json.loads(json.dumps(state["records"]))  # as it comes back from disk
    weights = {name: value.clone() for name, value in campaign.model.state_dict().items()}
    whole = list(play(problem, campaign, actions[1:]))  # the original moves on before the state is used

    resumed = problem.campaign(0)
    resumed.pool.load_state_dict(state["pool"])
    resumed.load_state_dict(state, problem.trainer.restore(resumed.job(), weights))
    assert resumed.records == whole[:2]
    assert play(problem, resumed, actions[1:]) == whole
    assert resumed.done


class Learns(Strategy):
    """Buys from position `purchases` on: something that remembers."""

    def __init__(self) -> None:
        self.purchases = 0

    def select(self, round: Round, budget: int) -> Tensor:
        self.purchases += budget
        return torch.arange(self.purchases, self.purchases + budget)

    def state_dict(self) -> dict[str, Any]:
        return {"purchases": self.purchases}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.purchases = state["purchases"]


def test_what_strategies_have_learned_is_part_of_the_state() -> None:
    problem = a_problem({"learns": Learns()})
    campaign = problem.campaign(0)
    play(problem, campaign, [0])
    state, model = campaign.state_dict(), campaign.model
    expected = turn(problem, campaign, campaign.choose(0)).queried
    other = a_problem({"learns": Learns()})
    resumed = other.campaign(0)
    resumed.load_state_dict(state, model)
    assert other.strategies["learns"].purchases == 10
    assert turn(other, resumed, resumed.choose(0)).queried == expected


# Actions


def test_a_pick_puts_all_weight_on_one_strategy() -> None:
    assert action_weights("pick", 2, 4, 9).tolist() == [0, 0, 1, 0]
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=rf"number of a strategy, 0\.\.3, got {bad}"):
            action_weights("pick", bad, 4, 9)


def test_a_mixture_is_the_softmax_of_ten_times_the_action() -> None:
    expected = torch.tensor([10.0, -5.0, 0.0]).exp() / torch.tensor([10.0, -5.0, 0.0]).exp().sum()
    torch.testing.assert_close(action_weights("mix", [1.0, -0.5, 0.0], 3, 9), expected)
    rows = action_weights("sample_mix", torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0]]), 3, 2)
    torch.testing.assert_close(rows, torch.stack([expected, torch.full((3,), 1 / 3)]))


@pytest.mark.parametrize("shape", [(5,), (4, 6)])
def test_weights_become_an_action_and_come_back(shape: tuple[int, ...]) -> None:
    weights = (4 * torch.randn(shape, generator=Streams(0)("weights"))).softmax(-1).clamp(min=1e-7)
    weights = weights / weights.sum(-1, keepdim=True)
    action = torch.from_numpy(weights_action(weights))
    assert float(action.abs().max()) <= 1
    kind = "mix" if len(shape) == 1 else "sample_mix"
    torch.testing.assert_close(action_weights(kind, action, shape[-1], shape[0]), weights, atol=1e-6, rtol=1e-4)


def test_a_weight_of_zero_becomes_the_least_an_action_can_say() -> None:
    action = torch.from_numpy(weights_action(torch.tensor([0.0, 1.0, 0.0])))
    assert action.tolist() == [-1.0, 1.0, -1.0]
    assert action_weights("mix", action, 3, 9).tolist() == pytest.approx([0, 1, 0], abs=3e-9)


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("mix", [0.0, 0.0], r"action of shape \(3,\), got \(2,\)"),
        ("mix", [[0.0, 0.0, 0.0]], r"action of shape \(3,\), got \(1, 3\)"),
        ("sample_mix", [0.0, 0.0, 0.0], r"action of shape \(4, 3\), got \(3,\)"),
        ("mix", [0.0, 0.0, 1.5], r"action values in \[-1, 1\]"),
        ("mix", [0.0, 0.0, float("nan")], r"action values in \[-1, 1\]"),
    ],
)
def test_actions_of_another_shape_or_range_are_refused(kind: Any, action: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_weights(kind, action, 3, 4)


# What stays hidden


class Sealed:
    """Hidden targets: any look at them fails, but for reading the ones being bought."""

    def __init__(self, targets: Tensor) -> None:
        self.__dict__.update(_targets=targets, allowed=set())

    def __getitem__(self, indices: Any) -> Tensor:
        wanted = set(torch.as_tensor(indices).flatten().tolist())
        assert wanted <= self.allowed, "a hidden label was read"
        return self._targets[indices]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"hidden labels were looked at: {name}")

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("hidden labels were looked at")

    __len__ = __iter__ = __eq__ = __array__ = _refuse
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise AssertionError("hidden labels were looked at")


def play_sealed(problem: Problem, seed: int, actions: Sequence[Any]) -> list[Record]:
    campaign = problem.campaign(seed)
    sealed = Sealed(campaign.task.targets)
    task = replace(campaign.task, targets=sealed)
    problem.oracle._targets = sealed
    net = functools.partial(problem.make_net, task)
    campaign = Campaign(task, problem.strategies, problem.plan, problem.trainer, net, Streams(seed), problem.reward)
    query = campaign.begin()
    for action in [*actions, None]:
        sealed.__dict__["allowed"] = set(query.indices.tolist())
        labels = problem.oracle.label(query.indices)
        sealed.__dict__["allowed"] = set()
        campaign.advance(problem.trainer.fit(campaign.receive(labels)))
        if action is not None:
            query = campaign.choose(action)
    return campaign.records


def test_the_seal_breaks_at_any_look() -> None:
    sealed = Sealed(torch.arange(5))
    sealed.__dict__["allowed"] = {1, 2}
    assert sealed[torch.tensor([2, 1])].tolist() == [2, 1]
    looks = [
        lambda: sealed[torch.tensor([0])], lambda: sealed[torch.tensor([1, 3])], lambda: sealed[4], lambda: sealed.tolist(),
        lambda: sealed.shape, lambda: len(sealed), lambda: list(sealed), lambda: sealed == 1, lambda: torch.bincount(sealed),
        lambda: torch.zeros(5) + sealed,
    ]  # fmt: skip
    for look in looks:
        with pytest.raises(AssertionError, match="hidden label"):
            look()


@pytest.mark.parametrize("reward", ["gain", "entropy_gain", "iw_accuracy"])
@pytest.mark.parametrize("name", NAMES)
def test_no_strategy_or_reward_reads_a_label_that_is_not_being_bought(name: str, reward: str) -> None:
    problem = a_problem([name], reward=reward)
    assert play_sealed(problem, 0, [0, 0]) == play(problem, problem.campaign(0), [0, 0])


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_no_action_kind_reads_a_label_that_is_not_being_bought(kind: dict[str, Any]) -> None:
    problem = a_problem(**kind)
    actions = [an_action(problem, 1), an_action(problem, 2)]
    assert play_sealed(problem, 0, actions) == play(problem, problem.campaign(0), actions)


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_test_labels_change_metrics_and_nothing_else(kind: dict[str, Any]) -> None:
    problem = a_problem(**kind)
    actions = [an_action(problem, 1), an_action(problem, 2)]
    plain = play(problem, problem.campaign(0), actions)
    campaign = problem.campaign(0)
    targets = (campaign.task.test.targets + 1) % 10
    campaign.task = replace(campaign.task, test=replace(campaign.task.test, targets=targets))
    permuted = play(problem, campaign, actions)
    assert all(a.metrics["accuracy"] > b.metrics["accuracy"] for a, b in zip(plain, permuted, strict=True))
    assert [replace(r, metrics={}) for r in plain] == [replace(r, metrics={}) for r in permuted]


# Without validation, without test


def test_without_validation_the_reward_is_another_one_and_says_so() -> None:
    problem = a_problem(validation=0)
    reward, sentence = problem.reward_for(problem.task(0))
    assert isinstance(reward, EntropyGain)
    assert sentence == "no validation split: the reward is EntropyGain instead of Gain"
    records = play(problem, problem.campaign(0), [0, 1])
    assert [r.validation for r in records] == [None] * 3
    assert all(0 <= r.reward <= 1 for r in records[1:])
    assert records[0].metrics["accuracy"] > 0


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_importance_weights_are_used_only_where_purchases_are_drawn(kind: dict[str, Any]) -> None:
    drawn = kind.get("mixing") == "slots" or kind["action"] == "sample_draw"
    expected = ImportanceWeightedAccuracy if drawn else EntropyGain
    problem = a_problem(validation=0, **kind)
    assert isinstance(problem.reward_for(problem.task(0))[0], expected)
    assert isinstance(a_problem(**kind).reward_for(a_problem(**kind).task(0))[0], Gain)


def test_importance_weighted_accuracy_is_computed_from_the_recorded_propensities() -> None:
    problem = a_problem(validation=0, **MIXTURES[1])
    campaign = problem.campaign(0)
    records = play(problem, campaign, [an_action(problem, 1), an_action(problem, 2)])
    later = torch.tensor(campaign.pool.order[20:])
    right = campaign.model(campaign.task.inputs[later]).argmax(1) == campaign.pool.labels[later]
    propensity = torch.tensor([p for r in records for p in r.propensity], dtype=torch.float64)
    assert len(propensity) == 20
    assert records[-1].reward == pytest.approx(float((right / propensity).sum()) / (1480 * 20))


def test_without_a_test_split_metrics_are_null() -> None:
    problem = a_problem()
    problem = replace(problem, source=replace(problem.source, test=None))
    records = play(problem, problem.campaign(0), [0, 1])
    assert all(set(r.metrics.values()) == {None} for r in records)
    assert all(len(r.metrics) == 5 for r in records)
    assert all(r.validation is not None for r in records)


# Ends early


def test_reaching_the_accuracy_asked_for_ends_the_campaign() -> None:
    plain = a_problem()
    (first,) = play(plain, plain.campaign(0))
    easy, hard = a_problem(stop_accuracy=first.validation), a_problem(stop_accuracy=1.01)
    campaign = easy.campaign(0)
    play(easy, campaign)
    assert campaign.finished
    assert not campaign.done  # an episode has a step; whoever needs none looks at `finished`
    play(easy, campaign, [0])
    assert campaign.done
    with pytest.raises(ValueError, match="campaign that is over"):
        campaign.choose(0)
    campaign = hard.campaign(0)
    play(hard, campaign, [0])
    assert not campaign.done
    with pytest.raises(ValueError, match=r"stop\.accuracy needs a validation split"):
        a_problem(validation=0, stop_accuracy=0.9).campaign(0)


# What a task cannot offer


class Needs(Strategy):
    def __init__(self, *needs: str) -> None:
        self.needs = frozenset(needs)

    def select(self, round: Round, budget: int) -> Tensor:
        return torch.arange(budget)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ("aux:loss", "strategy 'mine' needs aux:loss, which this task does not offer"),
        ("features:semantic", "strategy 'mine' needs features:semantic"),
        ("mc_prob", r"unknown needs \['mc_prob'\]"),
    ],
)
def test_a_strategy_that_needs_what_the_task_lacks_is_refused_before_the_run(need: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_problem({"mine": Needs(need)}).campaign(0)


def test_stochastic_outputs_of_a_net_without_noise_are_refused_before_the_run() -> None:
    silent = {"name": "mlp", "dropout": 0.0}
    problem = assemble(dataset=DIGITS, net=silent, strategies=["margin", "bald"], device="cpu")
    with pytest.raises(ValueError, match="strategy 'bald' needs stochastic outputs, but the net has no dropout"):
        problem.campaign(0)
    assemble(dataset=DIGITS, net="mlp", strategies=["margin", "bald"], device="cpu").campaign(0)
