"""Learning loss: the pair loss by hand, what the head learns, and who learns from it."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from alenv import library
from alenv.heads import Head, ranking_loss
from alenv.job import Job
from alenv.round import Round
from alenv.runner import Runner
from alenv.strategies.learning_loss import LearningLoss
from alenv.streams import Streams
from alenv.trainer import Trainer

NETS = ("linear", "mlp", "small_cnn")


def lossy(size, stream):
    """Images of two classes, dark and bright: the greyer one is, the higher the loss of any sensible model."""
    draw = Streams(0)(stream)
    level = 2 * torch.rand(size, 1, 1, 1, generator=draw) - 1
    return level + 0.3 * torch.randn(size, 1, 4, 4, generator=draw), (level > 0).long().flatten()


def fitted(net, heads, epochs=30, size=300):
    x, y = lossy(size, "train")

    def make():
        return library.build("net", net)((1, 4, 4), 2, 0.0, 1.0)

    trainer = Trainer(device="cpu", epochs=epochs, min_steps=0)
    return trainer, trainer.fit(Job(make, x, y, Streams(1), heads=heads))


def test_the_highest_predicted_loss_is_bought_first():
    now = Round.from_arrays(aux={"loss": torch.tensor([[0.1], [2.0], [0.5]])}, probs=torch.full((3, 2), 0.5))
    assert LearningLoss().select(now, 3).tolist() == [1, 2, 0]
    flat = Round.from_arrays(aux={"loss": [0.1, 2.0, 0.5]}, probs=torch.full((3, 2), 0.5))
    assert LearningLoss().select(flat, 1).tolist() == [1]


@pytest.mark.parametrize(("predicted", "expected"), [([1.0, 0.0], 2.0), ([0.0, 3.0], 0.0)])
def test_a_pair_in_the_wrong_order_costs_its_distance_and_the_margin(predicted, expected):
    assert float(ranking_loss(torch.tensor(predicted), torch.tensor([0.2, 0.9]))) == expected


def test_a_batch_of_one_has_no_loss_and_does_not_spoil_the_model():
    assert float(ranking_loss(torch.tensor([3.0]), torch.tensor([1.0]))) == 0
    x, y = lossy(1, "one")

    def make():
        return library.build("net", "mlp")((1, 4, 4), 2, 0.0, 1.0)

    model = Trainer(device="cpu", epochs=2, min_steps=0).fit(Job(make, x, y, Streams(1), heads=LearningLoss().heads()))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_the_loss_of_the_head_is_its_weight_times_the_pair_loss_of_the_cross_entropies():
    seen = []
    strategy = LearningLoss(margin=0.5, weight=3.0)
    (head,) = strategy.heads()

    def spy(batch):
        losses = F.cross_entropy(batch.logits, batch.targets, reduction="none")
        seen.append((head.loss(batch).item(), 3 * ranking_loss(batch.outputs[:, 0], losses, 0.5).item()))
        return head.loss(batch)

    fitted("mlp", (Head("loss", head.build, spy),), epochs=1)
    assert seen
    assert all(given == pytest.approx(expected) for given, expected in seen)


@pytest.mark.parametrize("net", NETS)
def test_the_head_ranks_the_losses_of_examples_it_has_not_seen(net):
    trainer, model = fitted(net, LearningLoss().heads())
    x, y = lossy(400, "held")
    outputs = trainer.outputs(model, x)
    losses = F.cross_entropy(outputs.logits, y, reduction="none")
    assert outputs.aux["loss"].shape == (400, 1)
    assert stats.spearmanr(outputs.aux["loss"].flatten().numpy(), losses.numpy()).statistic > 0.5


@pytest.mark.parametrize("net", NETS)
def test_as_a_mere_candidate_it_does_not_change_the_task_model(net):
    plain, headed = fitted(net, (), 3, 60)[1].state_dict(), fitted(net, LearningLoss().heads(), 3, 60)[1].state_dict()
    assert all(torch.equal(value, headed[name]) for name, value in plain.items())
    assert all(name.startswith("aux.loss.") for name in headed.keys() - plain.keys())


def bodies(joint_until):
    (head,) = LearningLoss(joint_until=joint_until).heads()
    joint = Head("loss", head.build, head.loss, True, head.joint_until)
    return fitted("mlp", (joint,), 4, 60)[1].body.state_dict()


def test_a_joint_head_shapes_the_features_only_in_the_first_share_of_the_epochs():
    plain, never, early, always = fitted("mlp", (), 4, 60)[1].body.state_dict(), bodies(0.0), bodies(0.5), bodies(1.0)
    name = next(iter(plain))
    assert torch.equal(plain[name], never[name])
    assert not torch.equal(plain[name], early[name])
    assert not torch.equal(early[name], always[name])
    head = Head("x", lambda *_: None, lambda _: None, joint=True, joint_until=0.6)
    assert [head.reaches_body(epoch, 5) for epoch in range(5)] == [True, True, True, False, False]


def test_fixed_trains_the_head_jointly_if_asked_to_and_runs_either_way():
    def run(joint):
        config = {
            "selector": {"name": "fixed", "strategy": "learning_loss"}, "net": "mlp", "joint": joint, "device": "cpu",
            "dataset": "iris", "budget": {"initial": 12, "batch": 6, "rounds": 1},
            "trainer": {"name": "default", "epochs": 4, "min_steps": 8},
        }  # fmt: skip
        runner = Runner.of(config)
        runner.run()
        return runner.env.campaign

    alone, joint = run(False), run(True)
    assert [head.joint for head in alone.job().heads] == [False]
    assert [(head.joint, head.joint_until) for head in joint.job().heads] == [(True, 0.6)]
    assert not torch.equal(alone.model.linear.weight, joint.model.linear.weight)
    assert set(alone.round.aux) == {"loss"}


def test_the_batch_is_sought_within_the_sub_pool():
    now = Round.from_arrays(aux={"loss": torch.arange(100.0)}, probs=torch.full((100, 2), 0.5))
    small = LearningLoss(subpool=10)
    picks = small.select(now, 4).tolist()
    assert picks == sorted(picks, reverse=True)
    assert picks != [99, 98, 97, 96]
    assert set(picks) <= set(small.select(now, 10).tolist())
    assert len(small.select(now, 40)) == 40, "a batch larger than the sub-pool widens it"
    assert LearningLoss(subpool=1000).select(now, 4).tolist() == [99, 98, 97, 96]
