"""TiDAL: what is bought by hand, the averages the head learns, and that it learns them."""

import pytest
import torch
import torch.nn.functional as F

from alenv import library
from alenv.heads import Head, HeadBatch
from alenv.job import Job
from alenv.round import Round
from alenv.strategies.tidal import DynamicsHead, TiDAL
from alenv.streams import Streams
from alenv.trainer import Trainer

NETS = ("linear", "mlp", "small_cnn")


def data(size=60, classes=3):
    draw = Streams(0)("tidal")
    labels = torch.arange(size) % classes
    return torch.randn(size, 1, 4, 4, generator=draw) + labels.view(-1, 1, 1, 1), labels


def fitted(net, heads, epochs=10):
    x, y = data()

    def make():
        return library.build("net", net)((1, 4, 4), 3, 0.0, 1.0)

    trainer = Trainer(device="cpu", epochs=epochs, min_steps=0, batch_size=16)
    return trainer, trainer.fit(Job(make, x, y, Streams(1), heads=heads))


def a_round(dynamics, probs):
    return Round.from_arrays(aux={"dynamics": torch.tensor(dynamics).log()}, probs=torch.tensor(probs))


def batch(head, outputs, probs, rows, epoch):
    return HeadBatch(head, outputs, probs.log(), torch.zeros_like(probs), rows, epoch, 10)


def small_head(examples):
    with Streams(0).scoped("init"):
        return DynamicsHead([(4,)], 3, examples, 8)


def test_the_dynamics_decide_and_not_the_final_prediction():
    now = a_round([[0.5, 0.5], [0.9, 0.1]], [[0.99, 0.01], [0.5, 0.5]])
    assert TiDAL().select(now, 2).tolist() == [0, 1]
    torch.testing.assert_close(TiDAL().scores(now), torch.tensor([0.6931, 0.3251]), atol=1e-4, rtol=0)


def test_the_margin_is_taken_at_the_prediction_of_the_task_model():
    now = a_round([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1]], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(TiDAL("aum").scores(now), torch.tensor([-0.5, 0.5, 0.6]))
    assert TiDAL("aum").select(now, 3).tolist() == [2, 1, 0]
    assert TiDAL("aum").needs == {"aux:dynamics", "logits"}
    with pytest.raises(ValueError, match="mode=entropy or mode=aum"):
        TiDAL("margin")


def test_the_average_after_some_epochs_is_the_mean_of_their_probabilities():
    head = small_head(5)
    epochs = torch.randn(3, 2, 3, generator=Streams(0)("p")).softmax(2)
    for epoch, probs in enumerate(epochs):
        TiDAL()._loss(batch(head, torch.zeros(2, 3), probs, torch.tensor([4, 1]), epoch))
    torch.testing.assert_close(head.average[[4, 1]], epochs.mean(0))
    assert head.average[[0, 2, 3]].eq(0).all(), "examples of other batches are left alone"
    assert "average" not in head.state_dict(), "what is needed to train only is not saved"


def test_the_loss_is_the_divergence_of_the_head_from_the_average_and_reaches_the_head_alone():
    head = small_head(2)
    draw = Streams(0)("kl")
    outputs = torch.randn(2, 3, generator=draw, requires_grad=True)
    p = torch.randn(2, 3, generator=draw).softmax(1)
    loss = TiDAL(weight=2.0)._loss(batch(head, outputs, p, torch.tensor([0, 1]), 0))
    q = outputs.detach().softmax(1)
    assert loss.item() == pytest.approx(2 * float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    loss.backward()
    assert bool(outputs.grad.abs().sum() > 0)
    exact = TiDAL()._loss(batch(head, p.log(), p, torch.tensor([0, 1]), 0))
    assert exact.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_the_head_has_an_output_per_class_and_its_divergence_falls(net):
    course = []
    (head,) = TiDAL().heads()

    def spy(batch):
        loss = head.loss(batch)
        course.append((batch.epoch, loss.item()))
        return loss

    trainer, model = fitted(net, (Head("dynamics", head.build, spy),), epochs=20)
    total = [sum(value for epoch, value in course if epoch == e) for e in (0, 19)]
    assert total[1] < 0.7 * total[0]
    x, _ = data()
    outputs = trainer.outputs(model, x)
    assert outputs.aux["dynamics"].shape == (60, 3)
    if net == "linear":  # no dynamics: the average is what the model says in the end
        torch.testing.assert_close(model.aux["dynamics"].average, outputs.logits.softmax(1), atol=1e-2, rtol=0)
    learned = F.kl_div(outputs.aux["dynamics"].log_softmax(1), model.aux["dynamics"].average, reduction="batchmean")
    assert learned < 0.3


@pytest.mark.parametrize("net", NETS)
def test_as_a_mere_candidate_it_does_not_change_the_task_model(net):
    plain, headed = fitted(net, (), 2)[1].state_dict(), fitted(net, TiDAL().heads(), 2)[1].state_dict()
    assert all(torch.equal(value, headed[name]) for name, value in plain.items())


def test_a_model_with_the_head_is_restored_from_its_state():
    x, y = data()

    def make():
        return library.build("net", "mlp")((1, 4, 4), 3, 0.0, 1.0)

    job = Job(make, x, y, Streams(1), heads=TiDAL().heads())
    trainer = Trainer(device="cpu", epochs=2, min_steps=0)
    model = trainer.fit(job)
    again = trainer.restore(job, model.state_dict())
    assert torch.equal(trainer.outputs(model, x).aux["dynamics"], trainer.outputs(again, x).aux["dynamics"])
