"""MQ-Net: the first round's rule, monotony, gradients against autograd, what it learns, and what it learns from."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alenv.campaign import Plan
from alenv.checks import check_strategy
from alenv.features import MissingOutputError
from alenv.heads import ranking_loss
from alenv.inference import Outputs
from alenv.model import TaskModel
from alenv.pool import OUTSIDE, Pool
from alenv.problem import assemble
from alenv.round import Purchase, Round
from alenv.strategies.mqnet import MQNet, _meta, _Net, purity
from alenv.streams import Streams
from alenv.trainer import Trainer

QUICK = {"epochs": 4, "steps": 25}


def generator(seed: int = 0) -> torch.Generator:
    return Streams(seed)("test")


def by_angle(angles: list[float]) -> Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


# The first round


def test_of_two_equally_informative_candidates_the_purer_is_bought_first() -> None:
    pure = by_angle([math.acos(0.95), math.acos(0.10)])
    probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    now = Round.from_arrays(probs=probs, labels=[0], features={"distinctive": (pure, by_angle([0.0]))})
    assert purity(pure, by_angle([0.0]), 1).tolist() == pytest.approx([0.95, 0.10], abs=1e-6)
    assert MQNet().select(now, 2).tolist() == [0, 1]


def test_the_first_rounds_score_is_the_sum_of_exponentiated_standard_scores() -> None:
    probs = torch.rand(20, 3, generator=generator()).double().softmax(1)
    features = torch.randn(20, 4, generator=generator(1)).double(), torch.randn(5, 4, generator=generator(2)).double()
    now = Round.from_arrays(probs=probs, labels=[0, 1, 2, 0, 1], features={"distinctive": features})
    x, z = (part.numpy() for part in features)
    informative = 1 - probs.numpy().max(1)
    pure = np.array([max(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in z) for a in x])
    expected = sum(np.exp((v - v.mean()) / v.std()) for v in (informative, pure))
    np.testing.assert_allclose(MQNet().score(now).numpy(), expected, rtol=1e-9)


def test_equal_values_weigh_nothing() -> None:
    assert _meta(torch.full((4,), 0.3), torch.full((4,), 0.7)).tolist() == [[1.0, 1.0]] * 4


def test_purity_of_several_views_is_the_mean_of_their_largest_cosines() -> None:
    x, z = torch.randn(9, 3, 4, generator=generator()), torch.randn(6, 3, 4, generator=generator(1))
    each = [purity(x[:, v], z[:, v], 1) for v in range(3)]
    torch.testing.assert_close(purity(x.flatten(1), z.flatten(1), 3), torch.stack(each).mean(0))


# The net


@pytest.mark.parametrize("seed", range(5))
def test_whatever_its_weights_the_net_never_falls_when_an_input_rises(seed: int) -> None:
    net = _Net(generator(seed))
    for part in (net.w1, net.b1, net.w2):
        part.copy_(torch.randn(part.shape, generator=generator(seed + 50)))
    low = 3 * torch.rand(200, 2, generator=generator(seed + 1))
    high = low + torch.rand(200, 2, generator=generator(seed + 2)) * (torch.rand(200, 2, generator=generator(seed)) < 0.5)
    assert bool((net(high) >= net(low) - 1e-6).all())


@pytest.mark.parametrize("size", [2, 5, 8])
def test_gradients_by_hand_are_those_of_the_ranking_loss(size: int) -> None:
    net = _Net(generator())
    for part in (net.w1, net.w2):
        part.sub_(0.3)  # some below zero, where the cut-off passes no gradient
    x, losses = torch.rand(size, 2, generator=generator(1)) * 3, torch.rand(size, generator=generator(2))
    pairs = size // 2 * 2
    by_hand = net.gradients(x[:pairs], losses[:pairs])
    leaves = [part.clone().requires_grad_() for part in (net.w1, net.b1, net.w2)]
    scores = torch.sigmoid(x[:pairs] @ leaves[0].relu() + leaves[1]) @ leaves[2].relu()
    expected = torch.autograd.grad(ranking_loss(scores, losses[:pairs]), leaves)
    for mine, theirs in zip(by_hand, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_to_rank_pure_samples_of_high_loss_above_outsiders(seed: int) -> None:
    """Outsiders look informative here: the sum of the first round ranks many of them first, the net does not."""
    draw = generator(seed)
    outside = torch.arange(200) >= 100
    informative = torch.rand(200, generator=draw) + 0.5 * outside
    pure = 0.6 * torch.rand(200, generator=draw) + torch.where(outside, 0.0, 0.45)
    losses = torch.where(outside, 0.0, informative)
    x = _meta(informative, pure)

    def wrong(scores: Tensor) -> float:
        return float((scores[~outside][:, None] < scores[outside]).float().mean())

    taught = _Net(generator(seed)).taught(x, losses, generator(seed + 9), MQNet(epochs=20, lr=0.05))
    assert wrong(taught(x)) < 0.6 * wrong(x.sum(1))
    assert ranking(taught(x), losses) > ranking(_Net(generator(seed))(x), losses)


@pytest.mark.parametrize("seed", range(3))
def test_after_pairs_of_classes_of_high_loss_and_outsiders_every_known_sample_ranks_above_every_outsider(seed: int) -> None:
    draw = generator(seed)
    outside = torch.arange(64) % 2 == 1
    informative = 0.4 + 0.2 * torch.rand(64, generator=draw) + 0.3 * outside  # outsiders look more informative
    pure = torch.where(outside, 0.1, 0.8) + 0.1 * torch.rand(64, generator=draw)
    losses = torch.where(outside, 0.0, 2.0 + torch.rand(64, generator=draw))
    x = _meta(informative, pure)
    taught = _Net(generator(seed)).taught(x, losses, generator(seed + 9), MQNet())(x)
    assert taught[~outside].min() > taught[outside].max()


def ranking(scores: Tensor, losses: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([scores.argsort().argsort(), losses.argsort().argsort()]).double())[0, 1])


# What it learns from


class Seen:
    """A pool after two purchases, and the round that follows."""

    def __init__(self, answers: list[int | None], outputs: Outputs | None) -> None:
        with Streams(0).scoped("init"):
            self.model = TaskModel(nn.Identity(), 3, 2, dropout=0.2).eval()
        self.inputs = torch.randn(30, 3, generator=generator())
        self.features = torch.randn(30, 4, generator=generator(1))
        self.pool = Pool(30, 2)
        self.pool.reveal(torch.tensor([0, 9, 5]), [0, 1, 0])
        self.bought = torch.tensor([20, 3, 11, 7])
        self.pool.reveal(self.bought, answers)
        self.last = Purchase(self.bought, self.pool.labels[self.bought], outputs)

    def round(self) -> Round:
        return Round.of_model(
            self.model, self.inputs, self.pool, Trainer("cpu").outputs, Streams(0), index=2, last=self.last,
            features={"distinctive": self.features},
        )  # fmt: skip


def an_output(seed: int = 5) -> Outputs:
    logits = torch.randn(4, 2, generator=generator(seed))
    return Outputs(torch.zeros(4, 3), logits, {"mqnet_loss": logits[:, :1]})


def test_it_learns_from_the_purchase_as_it_looked_when_it_was_bought() -> None:
    seen, outputs = Seen([1, None, OUTSIDE, 0], an_output()), an_output()
    lesson = MQNet()._lesson(seen.round())
    assert lesson is not None
    x, losses = lesson
    usable = torch.tensor([0, 2, 3])  # the oracle said nothing of the second
    informative = (1 - outputs.logits.softmax(1).max(1).values)[usable]
    pure = purity(seen.features[seen.bought], seen.features[[0, 5, 9]], 1)[usable]  # not against the purchase itself
    torch.testing.assert_close(x, _meta(informative, pure))
    expected = -outputs.logits.log_softmax(1)
    torch.testing.assert_close(losses, torch.stack([expected[0, 1], torch.tensor(0.0), expected[3, 0]]))


@pytest.mark.parametrize(
    ("answers", "outputs"),
    [([1, 0, 1, 0], None), ([1, None, None, None], an_output())],
    ids=["chosen without a model", "one answer"],
)
def test_without_a_lesson_the_rule_of_the_first_round_holds(answers: list[int | None], outputs: Outputs | None) -> None:
    now = Seen(answers, outputs).round()
    assert MQNet()._lesson(now) is None
    informative = 1 - now.probs.max(1).values
    found = now.features("distinctive")
    torch.testing.assert_close(MQNet().score(now), _meta(informative, purity(found.candidates, found.labeled, 1)).sum(1))


def test_a_lesson_changes_scores_and_nothing_else_and_repeats() -> None:
    seen = Seen([1, OUTSIDE, OUTSIDE, 0], an_output())
    strategy = MQNet(**QUICK)
    first = strategy.score(seen.round())
    assert torch.equal(first, strategy.score(seen.round()))
    assert torch.equal(first, MQNet(**QUICK).score(seen.round())), "nothing is remembered from call to call"
    assert not torch.equal(first, MQNet(**QUICK | {"epochs": 5}).score(seen.round()))
    lot = torch.randperm(len(first), generator=generator(3))
    torch.testing.assert_close(strategy.score(seen.round().subset(lot)), first[lot])


def test_predicted_losses_take_the_place_of_confidence() -> None:
    strategy = MQNet(mode="loss", **QUICK)
    assert strategy.needs == {"aux:mqnet_loss", "labels", "last", "features:distinctive"}
    assert [head.name for head in strategy.heads()] == ["mqnet_loss"]
    check_strategy(strategy)
    seen, outputs = Seen([1, OUTSIDE, 1, 0], an_output()), an_output()
    lesson = strategy._lesson(seen.round())
    assert lesson is not None
    torch.testing.assert_close(lesson[0][:, 0], _meta(outputs.aux["mqnet_loss"][:, 0], torch.zeros(4))[:, 0])


def test_a_campaign_hands_on_what_the_old_model_said_of_the_purchase_and_resumes_with_it() -> None:
    problem = assemble(
        strategies={"mqnet": MQNet(**QUICK), "uniform": "uniform"}, features={"distinctive": "raw"}, cache=None, device="cpu",
        plan=Plan(initial=20, batch=6, rounds=3), setting="openset",
    )  # fmt: skip

    def turn(campaign, query):  # type: ignore[no-untyped-def]
        job = campaign.receive(problem.oracle.label(query.indices))
        before = getattr(campaign, "model", None)
        model = problem.trainer.fit(job)
        campaign.advance(model)
        return before, model

    campaign = problem.campaign(0)
    turn(campaign, campaign.begin())
    assert campaign.round.last.outputs is None
    query = campaign.choose(0)
    before, model = turn(campaign, query)
    last = campaign.round.last
    torch.testing.assert_close(last.outputs.logits, problem.trainer.outputs(before, campaign.task.inputs[query.indices]).logits)
    assert bool(last.outside.any()) or bool((last.labels >= 0).all())
    again = problem.campaign(0)
    again.load_state_dict(campaign.state_dict(), model)
    assert torch.equal(again.ballot.wish("mqnet"), campaign.ballot.wish("mqnet"))


def test_an_unknown_mode_and_missing_features_are_refused() -> None:
    with pytest.raises(ValueError, match="expected mode=confidence or loss, got 'CONF'"):
        MQNet(mode="CONF")  # type: ignore[arg-type]
    with pytest.raises(MissingOutputError, match="features 'distinctive'"):
        MQNet().select(Round.from_arrays(probs=torch.full((3, 2), 0.5), labels=[0]), 1)
