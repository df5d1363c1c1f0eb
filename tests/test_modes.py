"""Deterministic algorithms and compiled passes: what a trainer can be asked for."""

import pytest
import torch
from torch import Tensor, nn

from alenv.campaign import Plan
from alenv.job import Job
from alenv.model import TaskModel
from alenv.modes import deterministic
from alenv.nets.mlp import mlp
from alenv.nets.small_cnn import small_cnn
from alenv.problem import assemble
from alenv.streams import Streams
from alenv.trainer import Trainer

COMPILED: list[str] = []  # a graph each


def counting(module, inputs):
    COMPILED.append("graph")
    return module.forward


torch._dynamo.register_backend(counting, name="counting")


@pytest.fixture
def backend():
    COMPILED.clear()
    yield "counting"
    torch._dynamo.reset()


class Watching(nn.Module):
    """A body that notes which algorithms are in force."""

    seen: list[bool]

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(6, 5), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(torch.are_deterministic_algorithms_enabled())
        return self.layer(x)


def a_job(net, n: int = 40, round: int = 0, shape=(6,)) -> Job:
    inputs = torch.randn(n, *shape, generator=Streams(0)(f"inputs/{n}"))
    return Job(net=net, inputs=inputs, targets=(inputs.flatten(1)[:, 0] > 0).long(), streams=Streams(0), round=round)


def quick(**options) -> Trainer:
    return Trainer(device="cpu", epochs=2, min_steps=6, batch_size=16, **options)


def weights(model: TaskModel) -> Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_deterministic_algorithms_are_used_while_fitting_only() -> None:
    bodies = []

    def net() -> TaskModel:
        bodies.append(Watching())
        return TaskModel(bodies[-1], 5, 2)

    for wanted in (False, True):
        trainer = quick(deterministic=wanted)
        model = trainer.fit(a_job(net))
        assert set(bodies[-1].seen) == {wanted}
        trainer.outputs(model, torch.zeros(3, 6))
        assert bodies[-1].seen[-1] is False
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_failed_fit_leaves_torch_as_it_was() -> None:
    def net() -> TaskModel:
        raise RuntimeError("no net")

    with pytest.raises(RuntimeError, match="no net"):
        quick(deterministic=True).fit(a_job(net))
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8)])
def test_compiled_passes_train_to_the_same_weights_and_are_compiled_once(shape, backend) -> None:
    def net() -> TaskModel:
        return mlp(shape, 2) if len(shape) == 1 else small_cnn(shape, 2)

    precision = "float32" if len(shape) == 1 else "auto"  # only plain MLPs are trained in bfloat16 on vectors
    plain, compiled = quick(precision=precision), quick(precision=precision, compile=backend)
    models, counts = [], []
    for round, n in enumerate((40, 53, 61, 40, 77)):
        job = a_job(net, n, round, shape)
        models.append(compiled.fit(job))
        counts.append(len(COMPILED))
        torch.testing.assert_close(weights(models[-1]), weights(plain.fit(job)), rtol=1e-3, atol=1e-4)
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 4  # the second size makes the batch dimension a variable; then nothing is left to compile
    first = weights(plain.fit(a_job(net, 40, 0, shape)))
    torch.testing.assert_close(weights(models[0]), first, rtol=1e-3, atol=1e-4)  # later rounds left earlier models alone


def test_another_net_has_passes_of_its_own(backend) -> None:
    trainer = quick(compile=backend)
    narrow, wide = (lambda: mlp((6,), 2, width=8)), (lambda: mlp((6,), 2, width=16))
    widths, counts = [], []
    for net in (narrow, wide, narrow, wide):
        widths.append(trainer.fit(a_job(net)).feature_dim)
        counts.append(len(COMPILED))
    assert widths == [8, 16, 8, 16]
    assert counts[3] == counts[1]


def test_a_compiled_campaign_compiles_in_its_first_rounds_only(backend) -> None:
    problem = assemble(
        dataset="iris", net="mlp", trainer=quick(compile=backend), strategies=["margin"],
        plan=Plan(initial=20, batch=7, rounds=4),
    )  # fmt: skip
    campaign = problem.campaign(0)
    query, counts = campaign.begin(), []
    oracle = problem.oracle
    while True:
        campaign.advance(problem.trainer.fit(campaign.receive(oracle.label(query.indices))))
        counts.append(len(COMPILED))
        if campaign.done:
            break
        query = campaign.choose(0)
    assert counts[2:] == [counts[1]] * 3


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected trainer.compile=null or .*inductor.*got 'inductr'"):
        Trainer(device="cpu", compile="inductr")
