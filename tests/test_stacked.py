"""MLPs trained as one batched computation: each is what it would be alone, and what a plain loop would make of it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import alenv.stacked
import alenv.trainer
from alenv.augment import augmented
from alenv.heads import Head
from alenv.job import Job, Virtual
from alenv.model import TaskModel
from alenv.nets.mlp import mlp
from alenv.stacked import rows_of, stackable
from alenv.streams import Streams
from alenv.task import Augmentation
from alenv.trainer import Trainer

CLASSES, DIM = 5, 21


def trainer(**settings):
    return Trainer(**{"device": "cpu", "epochs": 3, "min_steps": 12, "batch_size": 16, "precision": "float32"} | settings)


def job(n=40, seed=0, width=24, depth=1, dropout=0.3, shape=(DIM,), **changes):
    generator = Streams(seed)("data")
    targets = torch.arange(n) % CLASSES
    inputs = torch.randn(n, *shape, generator=generator)
    inputs[:, ..., 0] += targets.view(-1, *[1] * (len(shape) - 1))
    net = lambda: mlp(shape, CLASSES, mean=0.3, std=2.0, width=width, depth=depth, dropout=dropout)  # noqa: E731
    return Job(**{"net": net, "inputs": inputs, "targets": targets, "streams": Streams(seed)} | changes)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def fresh():
    with Streams(0).scoped("init"):
        return job().net()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain_loop(trainer, what, autocast=False):
    """Return the net a person would train with torch's own modules, optimiser and schedule, on the same batches and masks."""
    with what.streams.scoped("init"):
        model = what.net()
    model.train()
    inputs, targets, w = what.examples(CLASSES)
    order, noise = what.streams("train/order", what.round), what.streams("train/noise", what.round)
    per_epoch = math.ceil(len(inputs) / trainer.batch_size)
    epochs = max(trainer.epochs, math.ceil(trainer.min_steps / per_epoch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=trainer.lr, weight_decay=trainer.weight_decay)
    step, warm = 0, max(1, epochs * per_epoch // 10)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=order).tensor_split(per_epoch):
            after = (step - warm) / max(1, epochs * per_epoch - warm)
            share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * after)) / 2
            optimizer.param_groups[0]["lr"] = trainer.lr * share
            x = inputs[rows]
            if what.augmentation is not None:
                x = augmented(x, what.augmentation, noise)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                h = model.features(x)
            logits = model.head(model.dropped(h.float(), noise))
            loss = (F.cross_entropy(logits, targets[rows], reduction="none") * w[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return model


JOBS = {
    "one hidden layer": job(),
    "two hidden layers": job(depth=2, width=32),
    "no dropout": job(dropout=0.0),
    "uneven batches": job(n=37),
    "fewer examples than a batch": job(n=3),
    "odd numbers of features": job(n=37, width=23),
    "weights": job(weights=torch.linspace(0, 2, 40)),
    "virtual examples": job(
        virtual=Virtual(torch.randn(6, DIM, generator=Streams(1)("virtual")), torch.full((6, CLASSES), 1 / CLASSES))
    ),
    "images": job(shape=(1, 4, 5)),
    "augmented images": job(shape=(1, 6, 6), augmentation=Augmentation(1, True)),
    "another round": job(round=3),
}


# what is computed


@pytest.mark.parametrize("name", JOBS)
def test_it_trains_as_a_plain_loop_does(name):
    ours = trainer(min_steps=40).fit(JOBS[name])
    torch.testing.assert_close(weights(ours), weights(plain_loop(trainer(min_steps=40), JOBS[name])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["one hidden layer", "uneven batches", "augmented images"])
def test_it_trains_as_nets_that_are_not_stacked(name, monkeypatch):
    ours = trainer().fit(JOBS[name])
    monkeypatch.setattr(alenv.trainer, "stackable", lambda model: False)
    torch.testing.assert_close(weights(ours), weights(trainer().fit(JOBS[name])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_in_bfloat16_it_stays_near(depth, monkeypatch):
    monkeypatch.setattr(alenv.stacked, "HALF_FROM", 1)
    what = job(n=200, depth=depth, width=64)
    half, full = trainer(precision="bfloat16").fit(what), trainer().fit(what)
    assert not same(half, full)
    torch.testing.assert_close(half(what.inputs), full(what.inputs), rtol=0.05, atol=0.05)
    assert not torch.equal(half.linear.weight.bfloat16().float(), half.linear.weight)  # masters are float32
    losses = [float(F.cross_entropy(model(what.inputs), what.targets)) for model in (half, full)]
    assert abs(losses[0] - losses[1]) < 5e-3
    by_autocast = plain_loop(trainer(), what, autocast=True)
    torch.testing.assert_close(half(what.inputs), by_autocast(what.inputs).detach(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("precision", "native", "half"), [("auto", True, True), ("auto", False, False), ("float32", True, False)]
)
def test_large_hidden_layers_are_multiplied_in_bfloat16_where_it_is_native(precision, native, half, monkeypatch):
    monkeypatch.setattr(alenv.trainer, "has_native_bfloat16", lambda device: native)
    full = trainer().fit(job())
    assert same(trainer(precision=precision).fit(job()), full)  # small ones never
    monkeypatch.setattr(alenv.stacked, "HALF_FROM", 24 * 21)
    assert same(trainer(precision=precision).fit(job()), full) is not half


# who is trained together


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("count", [1, 7, 50])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_job_has_the_same_bits_alone_and_among_others(count, depth, half, monkeypatch):
    monkeypatch.setattr(alenv.stacked, "HALF_FROM", 1)
    how = trainer(precision="bfloat16" if half else "float32")
    jobs = [job(40 - seed % 3, seed, depth=depth, round=seed) for seed in range(count)]
    together = how.fit_many(jobs)
    for place in {0, count // 3, count - 1}:
        assert same(together[place], how.fit(jobs[place]))
    assert all(same(a, b) for a, b in zip(how.fit_many(jobs[::-1])[::-1], together, strict=True))


@pytest.mark.parametrize(("dim", "width", "classes"), [(384, 256, 10), (64, 130, 2), (5, 3, 17)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_the_batch_for_heads_of_usual_size(dim, width, classes, precision):
    def one(seed):
        x = torch.randn(100, dim, generator=Streams(seed)("x"))  # batches of 50, padded to 56
        return Job(lambda: mlp((dim,), classes, width=width, depth=1), x, torch.arange(100) % classes, Streams(seed))

    how = trainer(precision=precision, batch_size=64, epochs=2, min_steps=4)
    together = how.fit_many([one(seed) for seed in range(9)])
    for place in (0, 5, 8):
        assert same(together[place], how.fit(one(place)))


def recorded(monkeypatch):
    stacks, train = [], alenv.trainer.train_stacked
    monkeypatch.setattr(
        alenv.trainer,
        "train_stacked",
        lambda lanes, law: stacks.append([len(lane.targets) for lane in lanes]) or train(lanes, law),
    )
    return stacks


def test_jobs_of_like_size_share_a_batch_and_others_do_not(monkeypatch):
    stacks = recorded(monkeypatch)
    trainer().fit_many([job(n) for n in (40, 100, 37, 48, 100)] + [job(depth=2), job(dropout=0.5), job(width=30)])
    assert stacks == [[40, 37, 48], [100, 100], [40], [40], [40]]


def test_no_more_are_stacked_than_the_cache_holds(monkeypatch):
    stacks = recorded(monkeypatch)
    size = sum(p.numel() for p in fresh().parameters())
    monkeypatch.setattr(alenv.trainer, "CPU_STACK_ELEMENTS", 3 * size)
    trainer().fit_many([job(seed=seed) for seed in range(7)])
    assert [len(stack) for stack in stacks] == [3, 3, 1]
    stacks.clear()
    monkeypatch.setattr(alenv.trainer, "CPU_STACK_ELEMENTS", size - 1)
    trainer().fit_many([job(seed=seed) for seed in range(2)])
    assert [len(stack) for stack in stacks] == [1, 1]


def test_memory_that_does_not_suffice_for_all_may_do_for_fewer(monkeypatch):
    jobs = [job(seed=seed) for seed in range(5)]
    expected, stacks, train = trainer().fit_many(jobs), [], alenv.trainer.train_stacked

    def scarce(lanes, law):
        stacks.append(len(lanes))
        if len(lanes) > 2:
            raise torch.OutOfMemoryError("no")
        train(lanes, law)

    monkeypatch.setattr(alenv.trainer, "train_stacked", scarce)
    assert all(same(a, b) for a, b in zip(trainer().fit_many(jobs), expected, strict=True))
    assert stacks == [5, 2, 3, 1, 2]


def test_one_net_that_does_not_fit_is_trained_with_smaller_batches(monkeypatch):
    train = alenv.trainer.train_stacked

    def scarce(lanes, law):
        if rows_of(len(lanes[0].targets), law.batches) > 16:
            raise torch.OutOfMemoryError("no")
        train(lanes, law)

    monkeypatch.setattr(alenv.trainer, "train_stacked", scarce)
    with pytest.warns(UserWarning, match="batch_size=16"):
        found = trainer(batch_size=32).fit(job())
    assert same(found, trainer().fit(job()))


def test_batches_are_padded_to_eight_rows():
    assert [rows_of(n, batches) for n, batches in ((1, 1), (16, 1), (17, 1), (100, 2), (500, 8))] == [8, 16, 24, 56, 64]


def test_only_mlps_of_ours_are_stacked():
    model = fresh()
    assert stackable(model)
    model.body.layers[0].requires_grad_(False)
    assert not stackable(model)
    with Streams(0).scoped("init"):
        assert not stackable(TaskModel(nn.Linear(4, 3), 3, 2))

    class Own(TaskModel):
        def features(self, x):
            return super().features(x) + 1

    with Streams(0).scoped("init"):
        assert not stackable(Own(fresh().body, 24, CLASSES))


# extra heads


class Last(nn.Module):
    """One linear unit on the last hidden layer."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, stages):
        return self.linear(stages[-1] + stages[0].sum(1, keepdim=True))


def a_head(**settings):
    return Head("last", lambda shapes, classes, n: Last(shapes[-1][0]), lambda batch: batch.outputs.square().mean(), **settings)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("until", [1.0, 0.4, 0.0])
def test_heads_train_and_pull_as_in_nets_that_are_not_stacked(depth, until, monkeypatch):
    what = job(depth=depth, heads=(a_head(joint=True, joint_until=until),))
    ours, alone = trainer().fit(what), trainer().fit(replace(what, heads=()))
    assert torch.equal(ours.linear.weight, alone.linear.weight) is (until == 0.0)
    monkeypatch.setattr(alenv.trainer, "stackable", lambda model: False)
    torch.testing.assert_close(weights(ours), weights(trainer().fit(what)), rtol=1e-4, atol=1e-4)
