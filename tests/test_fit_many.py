"""Many trainings at once: each gives the bits it gives alone, whatever else is trained with it."""

import pytest
import torch

import alenv.trainer
from alenv.convex import fit_softmax
from alenv.inference import Heads
from alenv.job import Job, Virtual
from alenv.model import TaskModel
from alenv.nets.linear import linear
from alenv.nets.mlp import mlp
from alenv.streams import Streams
from alenv.trainer import Trainer, bucket

CLASSES, DIM = 4, 23
NETS = {
    "linear": lambda: linear((DIM,), CLASSES, mean=0.3, std=2.0),
    "mlp": lambda: mlp((DIM,), CLASSES, mean=0.3, std=2.0, width=16, depth=2),
}


def trainer(**settings):
    return Trainer(**{"device": "cpu", "epochs": 2, "min_steps": 6, "batch_size": 16} | settings)


def job(kind="linear", n=30, seed=0, dim=DIM, **changes):
    generator = Streams(seed)("data")
    targets = torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, dim, generator=generator)
    inputs = centres[targets] + torch.randn(n, dim, generator=generator)
    return Job(**{"net": NETS[kind], "inputs": inputs, "targets": targets, "streams": Streams(seed)} | changes)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("sizes", [[30] * 50, [30, 31, 33, 200, 9, 17, 1], [40]])
def test_a_job_has_the_same_bits_alone_and_among_others(kind, sizes):
    jobs = [job(kind, n, seed) for seed, n in enumerate(sizes)]
    together = trainer().fit_many(jobs)
    for place in {0, len(jobs) // 2, len(jobs) - 1}:
        assert same(together[place], trainer().fit(jobs[place]))
    assert all(same(a, b) for a, b in zip(trainer().fit_many(jobs[::-1])[::-1], together, strict=True))


@pytest.mark.parametrize("dim", [7, 15, 64, 135])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("rows", [16, 112])
def test_solutions_do_not_depend_on_the_batch_whatever_the_widths_and_weights(dim, classes, rows):
    draw = Streams(0)("sets")
    h, targets = torch.randn(9, rows, dim, generator=draw), torch.randint(0, classes, (9, rows), generator=draw)
    weights = (torch.rand(9, rows, generator=draw) < 0.9).float()
    weights[1] *= 2
    given = h, torch.eye(classes)[targets], weights
    together = fit_softmax(*given, prior_precision=1.0)
    for lanes in ([0], [1], [8], [3, 5, 7]):
        assert torch.equal(fit_softmax(*(part[lanes] for part in given), prior_precision=1.0), together[lanes])


def test_jobs_of_all_kinds_can_be_mixed():
    jobs = [job(kind, n, seed) for seed in range(3) for kind in NETS for n in (20, 50)]
    jobs.append(job(n=20, weights=torch.linspace(0, 2, 20)))
    jobs.append(job(n=20, virtual=Virtual(torch.eye(3, DIM), torch.full((3, CLASSES), 1 / CLASSES))))
    for model, what in zip(trainer().fit_many(jobs), jobs, strict=True):
        assert same(model, trainer().fit(what))


def test_posteriors_are_those_of_jobs_alone_and_stay_lazy():
    jobs = [job(n=n, seed=n) for n in (20, 33, 40)]
    models = trainer().fit_many(jobs)
    assert all(model.laplace._factor is None for model in models)
    for model, what in zip(models, jobs, strict=True):
        assert torch.equal(model.laplace.factor(), trainer().fit(what).laplace.factor())
        assert torch.equal(model.laplace.factor(), trainer().restore(what, model.state_dict()).laplace.factor())


def test_heads_of_a_size_are_solved_in_batches_that_fit_the_cache(monkeypatch):
    seen = []
    solve = alenv.trainer.fit_softmax
    monkeypatch.setattr(
        alenv.trainer, "fit_softmax", lambda h, *rest, **given: seen.append(tuple(h.shape)) or solve(h, *rest, **given)
    )
    trainer().fit_many([job(n=n, seed=n) for n in (30, 32, 31, 40)])
    assert seen == [(3, 32, DIM), (1, 48, DIM)]
    monkeypatch.setattr(alenv.trainer, "CACHE_ELEMENTS", 2 * 32 * DIM)
    seen.clear()
    trainer().fit_many([job(n=30, seed=s) for s in range(5)])
    assert [shape[0] for shape in seen] == [2, 2, 1]


def test_a_bucket_is_at_most_an_eighth_or_fifteen_too_large():
    assert [bucket(n) for n in (1, 16, 17, 128, 129, 300, 1000, 1025)] == [16, 16, 32, 128, 144, 320, 1024, 1152]
    for n in range(1, 3000):
        assert n <= bucket(n) <= max(n + 15, n * 9 / 8)
        assert bucket(n) % 16 == 0


def test_different_classes_features_and_sizes_share_nothing_but_the_call():
    wide = job(dim=70, net=lambda: linear((70,), CLASSES))
    three = job(n=30, net=lambda: linear((DIM,), 9))
    models = trainer().fit_many([wide, job(), three])
    assert [tuple(m.linear.weight.shape) for m in models] == [(CLASSES, 70), (CLASSES, DIM), (9, DIM)]
    assert all(same(m, trainer().fit(j)) for m, j in zip(models, [wide, job(), three], strict=True))


def test_no_jobs_give_no_models():
    assert trainer().fit_many([]) == []
    assert isinstance(trainer().fit(job()), TaskModel)


@pytest.mark.parametrize("dim", [2, 23, 64, 300])
@pytest.mark.parametrize("classes", [2, 3, 10, 26])
def test_logits_have_the_same_bits_for_one_head_and_for_many_whatever_the_rows(dim, classes):
    models = []
    for seed in range(20):
        with Streams(seed).scoped("head"):
            models.append(linear((dim,), classes))
    h = torch.randn(700, dim, generator=Streams(0)("h"))
    together = [logits.T for logits in Heads(models).all_logits(h).split(classes)]
    rows = torch.randperm(700, generator=Streams(0)("rows"))
    for place in (0, 7, 19):
        alone = Heads([models[place]])
        assert torch.equal(alone.all_logits(h).T, together[place])
        torch.testing.assert_close(together[place], models[place](h).detach(), rtol=1e-4, atol=1e-5)
        for count in (1, 2, 5, 16, 450):
            assert torch.equal(alone.all_logits(h[rows[:count]]).T, together[place][rows[:count]])
