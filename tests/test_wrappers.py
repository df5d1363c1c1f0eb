"""Strategies made of other strategies: what each keeps out, what it passes on, and the round over some of the candidates."""

import itertools

import pytest
import torch

from alenv import library, toy
from alenv import round as round_module
from alenv.features import MissingOutputError
from alenv.heads import Head
from alenv.pool import ABSTAINED, OUTSIDE
from alenv.round import Round
from alenv.strategies.abstention_gate import AbstentionGate
from alenv.strategies.class_balance import ClassBalance, quotas
from alenv.strategies.margin import Margin
from alenv.strategies.ood_filter import OODFilter
from alenv.strategies.prefilter import Prefilter
from alenv.strategies.subsample import Subsample
from alenv.strategies.uniform import Uniform
from alenv.strategy import ScoreStrategy, Strategy, Wrapper, select_among, select_preferring
from alenv.streams import Streams


class Given(ScoreStrategy):
    """Scores are the first feature; keeps a count to show that state and heads pass through."""

    needs = frozenset({"embeddings"})

    def __init__(self, head="given"):
        self.seen, self.head = 0, head

    def score(self, round):
        self.seen += len(round)
        return round.embeddings[:, 0]

    def heads(self):
        return (Head(self.head, None, None),)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Last(Strategy):
    """Buys the last positions first."""

    def select(self, round, budget):
        return torch.arange(len(round) - 1, len(round) - 1 - budget, -1)


def scores(*values, **arrays):
    return Round.from_arrays(embeddings=torch.tensor(values).unsqueeze(1), num_classes=3, **arrays)


def rich(seed=0, size=60):
    draw = Streams(seed)("rich")
    return Round.from_arrays(
        logits=torch.randn(size, 4, generator=draw), embeddings=torch.randn(size, 3, generator=draw),
        mc_probs=torch.randn(5, size, 4, generator=draw).softmax(2), labels=[0, 0, 0, 1, 2],
        labeled_embeddings=torch.randn(5, 3, generator=draw), discarded_embeddings=torch.randn(2, 3, generator=draw),
        aux={"loss": torch.randn(size, 1, generator=draw)},
        features={"semantic": (torch.randn(size, 2, generator=draw), torch.randn(5, 2, generator=draw))}, seed=seed,
    )  # fmt: skip


# The round over some of the candidates.


def test_a_subset_holds_the_rows_that_were_asked_for_in_their_order():
    whole, where = rich(), torch.tensor([7, 3, 50])
    part = whole.subset(where)
    assert len(part) == 3
    assert part.candidates.tolist() == [7, 3, 50]
    for name in ("probs", "logits", "embeddings"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[where]), name
    assert torch.equal(part.mc_probs, whole.mc_probs[:, where])
    assert torch.equal(part.aux["loss"], whole.aux["loss"][where])
    assert torch.equal(part.features("semantic").candidates, whole.features("semantic").candidates[where])


def test_a_subset_shares_what_is_not_about_candidates():
    whole = rich()
    part = whole.subset(torch.tensor([1, 2]))
    assert part.labels is whole.labels
    assert part.labeled_embeddings is whole.labeled_embeddings
    assert part.discarded_embeddings is whole.discarded_embeddings
    assert torch.equal(part.features("semantic").labeled, whole.features("semantic").labeled)
    assert (part.index, part.num_classes, part.num_draws) == (whole.index, whole.num_classes, whole.num_draws)
    assert torch.rand(3, generator=part.generator("a")).equal(torch.rand(3, generator=whole.generator("a")))


def test_a_subset_of_a_subset_and_its_blocks_hold_the_right_rows():
    whole = rich()
    part = whole.subset(torch.arange(10, 40)).subset(torch.tensor([5, 0, 29]))
    assert part.candidates.tolist() == [15, 10, 39]
    assert torch.equal(part.embeddings, whole.embeddings[[15, 10, 39]])
    blocks = list(part.blocks("probs", size=2))
    assert [block.candidates.tolist() for block in blocks] == [[15, 10], [39]]
    assert torch.equal(
        torch.cat([block.features("semantic").candidates for block in blocks]), part.features("semantic").candidates
    )


def test_a_subset_says_what_is_missing_by_name():
    part = scores(1.0, 2.0, 3.0).subset(torch.tensor([0]))
    assert not part.has("probs")
    with pytest.raises(MissingOutputError, match="no probs"):
        _ = part.probs
    with pytest.raises(MissingOutputError, match="features 'semantic'"):
        part.features("semantic")


def test_two_subsets_share_one_pass_of_the_model():
    world, passes = toy.World(Margin(), torch.device("cpu")), []
    outputs = world.trainer.outputs
    world.trainer.outputs = lambda model, inputs: passes.append(len(inputs)) or outputs(model, inputs)
    whole = world.round()
    first, second = whole.subset(torch.arange(5)).probs, whole.subset(torch.arange(5, 9)).embeddings
    assert passes == [len(whole)]
    assert torch.equal(first, whole.probs[:5])
    assert torch.equal(second, whole.embeddings[5:9])


def test_draws_of_a_subset_are_those_of_the_whole_round_when_they_are_too_many_to_keep(monkeypatch):
    world = toy.World(Margin(), torch.device("cpu"))
    where = torch.tensor([4, 1, 9])
    kept = world.round().mc_probs[:, where]
    monkeypatch.setattr(round_module, "KEPT_ELEMENTS", 1)
    whole = world.round()
    assert torch.allclose(whole.subset(where).mc_probs, kept, atol=1e-6)
    assert "mc_probs" not in whole._values


# What all wrappers share.


def test_a_wrapper_reads_what_its_parts_read_and_carries_their_heads_and_state():
    made = Prefilter(by=Given("a"), inner=ClassBalance(Given("b")))
    assert made.needs == {"embeddings", "probs", "labels"}
    assert [head.name for head in made.heads()] == ["a", "b"]
    made.load_state_dict({"by": {"seen": 3}, "inner": {"inner": {"seen": 4}}})
    assert made.state_dict() == {"by": {"seen": 3}, "inner": {"inner": {"seen": 4}}}


def test_parts_that_share_a_head_declare_it_once():
    assert len(Prefilter(by=Given(), inner=Given()).heads()) == 1


@pytest.mark.parametrize("name", library.names("strategy"))
def test_every_strategy_can_be_wrapped(name):
    inner = library.build("strategy", name)
    wrapped = Subsample(inner, size=30)
    world = toy.World(wrapped, torch.device("cpu"))
    picks = wrapped.select(world.round(), 5)
    assert len(set(picks.tolist())) == 5
    assert picks.equal(wrapped.select(world.round(), 5))


def test_a_wrapper_that_keeps_everything_buys_what_its_inner_strategy_buys():
    plain = Uniform().select(rich(), 6)
    for made in (Subsample(Uniform(), 60), Prefilter(Margin(), Uniform()), AbstentionGate(Uniform(), gamma=0)):
        assert made.select(rich(), 6).equal(plain), type(made).__name__


def test_what_is_not_wanted_comes_last():
    round = scores(*map(float, range(10)))
    wanted = torch.tensor([i in (2, 5, 7) for i in range(10)])
    assert select_preferring(Given(), round, wanted, 2).tolist() == [7, 5]
    assert select_preferring(Given(), round, wanted, 5).tolist() == [7, 5, 2, 9, 8]
    assert sorted(select_preferring(Given(), round, wanted, 10).tolist()) == list(range(10))
    assert select_preferring(Given(), round, torch.zeros(10, dtype=torch.bool), 2).tolist() == [9, 8]


def test_positions_come_back_as_those_of_the_whole_round():
    assert select_among(Given(), scores(*map(float, range(10))), torch.tensor([8, 1, 4]), 2).tolist() == [8, 4]
    assert select_among(Given(), scores(*map(float, range(10))), torch.tensor([8, 1, 4]), 9).tolist() == [8, 4, 1]


# Each wrapper.


def test_subsample_buys_the_best_of_a_uniform_sub_pool():
    inner = Given()
    made = Subsample(inner, size=20)
    picks = made.select(rich(1, 100), 5)
    assert inner.seen == 20, "the inner strategy sees the sub-pool alone"
    lot = torch.randperm(100, generator=rich(1).generator("subsample"))[:20]
    best = lot[rich(1, 100).embeddings[lot, 0].topk(5).indices]
    assert picks.tolist() == best.tolist()


def test_every_candidate_enters_the_sub_pool_equally_often():
    made = Subsample(Last(), size=5)
    drawn = torch.zeros(20)
    for seed in range(800):
        drawn[made.select(scores(*[0.0] * 20, seed=seed), 5)] += 1
    expected = 800 * 5 / 20
    assert float(((drawn - expected) ** 2 / expected).sum()) < 43.8  # chi-square, 19 degrees of freedom, 0.1 %


def test_a_sub_pool_is_never_smaller_than_the_batch():
    assert len(Subsample(Given(), size=3).select(scores(*map(float, range(10))), 7)) == 7


def test_prefilter_gives_the_inner_strategy_the_first_of_the_other():
    round = scores(*[float(i * 7 % 20) for i in range(20)])
    picks = Prefilter(by=Given(), inner=Last(), factor=3).select(round, 2)
    kept = sorted(range(20), key=lambda i: -(i * 7 % 20))[:6]
    assert picks.tolist() == sorted(kept, reverse=True)[:2]


def test_prefilter_of_a_pointwise_score_by_itself_changes_nothing():
    round = rich(2)
    assert Prefilter(by=Margin(), inner=Margin(), factor=2).select(round, 8).equal(Margin().select(round, 8))


def brute_quotas(labels, available, budget):
    """Return the sorted label counts of the most even purchase, by trying them all."""
    choices = itertools.product(*[range(a + 1) for a in available])
    even = [tuple(sorted(n + q for n, q in zip(labels, choice, strict=True))) for choice in choices if sum(choice) == budget]
    return max(even)  # lexicographically largest: the smallest count as large as can be, then the next


@pytest.mark.parametrize("seed", range(30))
def test_quotas_are_the_most_even_there_are(seed):
    draw = Streams(seed)("quotas")
    labels, available = torch.randint(0, 6, (4,), generator=draw), torch.randint(0, 5, (4,), generator=draw)
    for budget in range(int(available.sum()) + 1):
        quota = quotas(labels, available, budget, Streams(seed)("lot"))
        assert int(quota.sum()) == budget
        assert bool((quota <= available).all())
        assert tuple((labels + quota).sort().values.tolist()) == brute_quotas(labels.tolist(), available.tolist(), budget)


def test_the_odd_label_falls_by_lot():
    seen = {
        tuple(quotas(torch.zeros(3, dtype=torch.int64), torch.full((3,), 9), 4, Streams(s)("lot")).tolist()) for s in range(20)
    }
    assert seen == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}


def test_class_balance_fills_the_classes_with_fewest_labels_first():
    predicted = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    probs = torch.nn.functional.one_hot(predicted, 3).float() * 0.7 + 0.1
    round = Round.from_arrays(probs=probs, embeddings=torch.arange(12.0).unsqueeze(1), labels=[0, 0, 0, 1, 1, 1, 2])
    assert ClassBalance(Given()).select(round, 2).tolist() == [11, 10], "class 2 has one label, the others three"
    five = ClassBalance(Given()).select(round, 5).tolist()
    assert five[:2] == [11, 10]
    assert {tuple(five[2:])} <= set(itertools.permutations([9, 7, 3])), "then one of each, the best of its class"
    assert sorted(ClassBalance(Given()).select(round, 12).tolist()) == list(range(12))


def test_class_balance_without_labels_buys_evenly():
    probs = torch.eye(3).repeat(5, 1)
    round = Round.from_arrays(probs=probs, labels=torch.zeros(0, dtype=torch.int64))
    assert torch.bincount(ClassBalance(Uniform()).select(round, 6) % 3).tolist() == [2, 2, 2]


def test_class_balance_survives_a_class_nobody_predicts():
    round = Round.from_arrays(probs=torch.tensor([[0.9, 0.1, 0.0]] * 5 + [[0.1, 0.9, 0.0]]), labels=[0, 0, 0])
    assert ClassBalance(Margin()).select(round, 3)[0] == 5


def ring(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_the_filter_passes_over_what_is_nearer_to_purchases_of_no_class():
    round = Round.from_arrays(
        embeddings=3 * ring(0.0, 20.0, 44.0, 46.0, 100.0), labels=[0, 1], labeled_embeddings=ring(0.0, 0.0),
        discarded_embeddings=5 * ring(90.0, 90.0, 180.0), num_classes=2,
    )  # fmt: skip
    made = OODFilter(Last(), neighbors=1)
    assert made.usable(round).tolist() == [True, True, True, False, False], "directions count, lengths do not"
    assert made.select(round, 4).tolist() == [2, 1, 0, 4]
    assert OODFilter(Last(), neighbors=9).usable(round).tolist() == [True, True, True, False, False], "k is at most L and X"


def test_the_filter_does_not_hold_abstentions_against_a_region():
    world = toy.World(OODFilter(Margin()), torch.device("cpu"))
    usable = {}
    for what in (ABSTAINED, OUTSIDE):
        world.pool.labels[world.pool.discarded] = what
        usable[what] = OODFilter(Margin(), neighbors=1).usable(world.round())
    assert bool(usable[ABSTAINED].all())
    assert not bool(usable[OUTSIDE].all())


def test_the_filter_keeps_what_lies_in_the_middle():
    round = Round.from_arrays(
        embeddings=ring(0.0, 0.0), labels=[0], labeled_embeddings=ring(0.0), discarded_embeddings=ring(0.0), num_classes=2
    )
    assert OODFilter(Last()).usable(round).tolist() == [True, True]


@pytest.mark.parametrize("missing", ["labeled_embeddings", "discarded_embeddings"])
def test_the_filter_rests_while_one_side_is_empty(missing):
    arrays = {"labeled_embeddings": ring(0.0), "discarded_embeddings": ring(90.0), missing: torch.zeros(0, 2)}
    labels = [0] * len(arrays["labeled_embeddings"])
    round = Round.from_arrays(embeddings=ring(0.0, 90.0), labels=labels, num_classes=2, **arrays)
    assert OODFilter(Last()).usable(round).tolist() == [True, True]


def test_the_filter_equals_its_plain_twin_in_blocks(monkeypatch):
    round = rich(3)
    whole = OODFilter(Margin(), neighbors=2).usable(round)
    unit = [
        torch.nn.functional.normalize(x, dim=1) for x in (round.embeddings, round.labeled_embeddings, round.discarded_embeddings)
    ]
    near = [torch.cdist(unit[0], other).sort(1).values[:, :2].mean(1) for other in unit[1:]]
    assert whole.equal(near[0] <= near[1])
    assert 0 < int(whole.sum()) < len(round)
    monkeypatch.setattr("alenv.geometry.CHUNK_ELEMENTS", 20)
    assert OODFilter(Margin(), neighbors=2).usable(round).equal(whole)


def gaps(*rows):
    """Two classes; each row holds the gaps p_0 - p_1 of one candidate, draw by draw."""
    gap = torch.tensor(rows).T
    return torch.stack([(1 + gap) / 2, (1 - gap) / 2], 2)


def test_the_gate_holds_back_what_all_draws_call_a_coin_toss():
    draws = gaps([0.05, -0.05, 0.0], [0.05, -0.3, 0.0], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1])
    round = Round.from_arrays(mc_probs=draws, embeddings=torch.arange(4.0).flip(0).unsqueeze(1))
    assert AbstentionGate(Given(), gamma=0.06).select(round, 4).tolist() == [1, 2, 0, 3]
    assert AbstentionGate(Given(), gamma=0.04).select(round, 4).tolist() == [1, 2, 3, 0]
    assert AbstentionGate(Given(), gamma=0.5).select(round, 4).tolist() == [0, 1, 2, 3], "all gated: the inner order"


def test_the_gate_leaves_the_inner_strategy_alone_where_every_draw_is_sure():
    gap = 0.5 + 0.4 * torch.rand(30, generator=Streams(6)("gate"))
    draws = gaps(*(torch.stack([gap, gap, gap], 1) * torch.where(torch.arange(30) % 2 == 0, 1, -1)[:, None]).tolist())
    round = Round.from_arrays(mc_probs=draws, probs=draws.mean(0))
    assert torch.equal(AbstentionGate(Margin(), gamma=0.2).select(round, 12), Margin().select(round, 12))


def test_the_gate_compares_the_likeliest_classes_of_the_mean():
    draws = torch.tensor([[[0.3, 0.3, 0.4]], [[0.5, 0.5, 0.0]]])  # first draw: class 2 leads; on average 0 and 1, always equal
    other = torch.tensor([[[0.5, 0.5, 0.0]], [[0.9, 0.0, 0.1]]])
    round = Round.from_arrays(mc_probs=torch.cat([draws, other], 1))
    assert AbstentionGate(Last(), gamma=0.01).select(round, 2).tolist() == [1, 0]
    assert AbstentionGate(Last(), gamma=0.01).select(round.subset(torch.tensor([1, 0])), 2).tolist() == [0, 1]


def test_for_two_classes_the_gate_is_the_interval_rule_of_the_paper():
    draw = Streams(5)("gate")
    one = 0.5 + 0.15 * (torch.rand(6, 80, generator=draw) - 0.5) * torch.rand(80, generator=draw)
    round = Round.from_arrays(mc_probs=torch.stack([one, 1 - one], 2))
    gamma = 0.03
    gated = (one.min(0).values >= 0.5 - gamma) & (one.max(0).values <= 0.5 + gamma)
    assert 0 < int(gated.sum()) < 80
    picks = AbstentionGate(Uniform(), gamma).select(round, int((~gated).sum()))
    assert set(picks.tolist()) == set(torch.nonzero(~gated).flatten().tolist())


def test_the_gate_reads_the_draws_in_blocks(monkeypatch):
    whole = AbstentionGate(Margin(), 0.2).select(rich(4), 60)
    monkeypatch.setattr(round_module, "BLOCK_ELEMENTS", 40)
    assert AbstentionGate(Margin(), 0.2).select(rich(4), 60).equal(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subsample(Margin(), size=0), "subsample: expected size >= 1, got 0"),
        (lambda: Prefilter(Margin(), Margin(), factor=0.5), "prefilter: expected factor >= 1, got 0.5"),
        (lambda: OODFilter(Margin(), neighbors=0), "ood_filter: expected neighbors >= 1, got 0"),
        (lambda: AbstentionGate(Margin(), gamma=0.6), r"abstention_gate: expected gamma in \[0, 0.5\], got 0.6"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "made",
    [
        Subsample(Margin(), 3),
        Prefilter(Margin(), Uniform(), 2),
        ClassBalance(Margin()),
        OODFilter(Margin()),
        AbstentionGate(Margin()),
    ],
    ids=lambda made: type(made).__name__,
)
def test_wrappers_survive_one_candidate_equal_scores_and_the_whole_pool(made: Wrapper):
    for size in (1, 2, 30):
        same = Round.from_arrays(
            probs=torch.full((size, 2), 0.5), embeddings=torch.ones(size, 2), mc_probs=torch.full((4, size, 2), 0.5), labels=[1],
            labeled_embeddings=torch.ones(1, 2), discarded_embeddings=torch.ones(3, 2),
        )  # fmt: skip
        for budget in (1, size, size + 3):
            picks = made.select(same, budget)
            assert len(set(picks.tolist())) == min(budget, size)
