"""Twins of bare models: what campaigns train from the second round on, where nothing but a head is trained."""

import torch
from torch import nn

from alenv import toy
from alenv.job import Job
from alenv.model import TaskModel
from alenv.nets.linear import linear
from alenv.nets.mlp import mlp
from alenv.selectors.fixed import Fixed
from alenv.streams import Streams
from alenv.trainer import Trainer

DIM, CLASSES = 7, 3


def job(net, **more):
    x = torch.randn(40, DIM, generator=Streams(0)("x"))
    return Job(net, x, x[:, :CLASSES].argmax(1), Streams(0), **more)


def test_only_heads_on_bodies_without_weights_and_state_are_bare():
    with Streams(0).scoped("nets"):
        assert linear((DIM,), CLASSES).bare
        assert not mlp((DIM,), CLASSES).bare
        assert not TaskModel(nn.BatchNorm1d(DIM, affine=False), DIM, CLASSES, solver="lbfgs").bare
        assert not TaskModel(nn.Flatten(), DIM, CLASSES).bare


def test_a_twin_is_trained_to_the_bits_of_a_net_made_anew():
    def net():
        return linear((DIM,), CLASSES, mean=torch.full((DIM,), 0.2), std=1.5)

    trainer = Trainer(device="cpu")
    plain = trainer.fit(job(net))
    twin = trainer.fit(job(None, like=plain))
    assert twin is not plain
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), twin.state_dict().values(), strict=True))
    assert torch.equal(plain.laplace.factor(), twin.laplace.factor())
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_a_twin_shares_no_weights_no_heads_and_no_posterior():
    model = Trainer(device="cpu").fit(job(lambda: linear((DIM,), CLASSES)))
    with Streams(0).scoped("heads"):
        model.aux["extra"], other = nn.Linear(1, 1), nn.Linear(1, 1)
    before = model.linear.weight.clone()
    twin = model.twin()
    assert twin.laplace is None
    assert not twin.aux
    twin.linear.weight.fill_(3.0)
    twin.aux["other"] = other
    assert torch.equal(model.linear.weight, before)
    assert list(model.aux) == ["extra"]
    assert model.laplace is not None


def test_campaigns_make_a_bare_net_once():
    problem = toy.problem(Fixed("margin"), 1)
    campaign, made = problem.campaign(0), []
    make = campaign._net
    campaign._net = lambda: made.append(0) or make()
    query = campaign.begin()
    for _ in range(3):
        campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(query.indices))))
        query = campaign.choose(0)
    assert len(made) == 1
