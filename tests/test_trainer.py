"""The trainer: one job, one result."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import alenv.stacked
import alenv.trainer
from alenv import inference
from alenv.device import has_native_bfloat16, pick_device
from alenv.heads import Head
from alenv.job import Job, Virtual
from alenv.metrics import classification
from alenv.model import TaskModel
from alenv.nets.linear import linear
from alenv.nets.mlp import mlp
from alenv.nets.small_cnn import small_cnn
from alenv.streams import Streams
from alenv.task import Augmentation, Examples, number_ids
from alenv.trainer import Trainer

CLASSES, SHAPE = 3, (1, 6, 6)


def small_trainer(**settings):
    return Trainer(**{"device": "cpu", "epochs": 2, "min_steps": 6, "batch_size": 8} | settings)


def net(kind, shape=SHAPE):
    if kind == "linear":
        return lambda: linear(shape, CLASSES, mean=128.0, std=64.0)
    if kind == "mlp":
        return lambda: mlp(shape, CLASSES, mean=128.0, std=64.0, width=8, depth=2)
    return lambda: small_cnn(shape, CLASSES, mean=128.0, std=64.0, widths=(4, 5))


def images(n=20, name="images"):
    return torch.randint(0, 256, (n, *SHAPE), generator=Streams(0)(name), dtype=torch.uint8)


def job(kind="mlp", n=20, **changes):
    return Job(**{"net": net(kind), "inputs": images(n), "targets": torch.arange(n) % CLASSES, "streams": Streams(0)} | changes)


def blobs(n=90, dim=4):
    generator = Streams(0)("blobs")
    targets = torch.arange(n) % CLASSES
    centres = 1.5 * torch.randn(CLASSES, dim, generator=generator)
    return centres[targets] + torch.randn(n, dim, generator=generator), targets


def states_equal(first, second, without_aux=False):
    keys = [key for key in first if not (without_aux and key.startswith("aux."))]
    return all(torch.equal(first[key], second[key]) for key in keys)


def noise():
    return Streams(0)("noise")


KINDS = ["linear", "mlp", "small_cnn"]
DESCENDING = ["mlp", "small_cnn"]


# one job, one result


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_job_gives_the_same_bits(kind):
    what = job(kind, augmentation=Augmentation(1, True))
    first, second = small_trainer().fit(what), small_trainer().fit(what)
    assert states_equal(first.state_dict(), second.state_dict())
    h = small_trainer().outputs(first, images(5)).embeddings
    assert torch.equal(first.draws(h, 3, noise()), second.draws(h, 3, noise()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generators_do_not_matter_and_are_left_alone(kind):
    states = []
    for seed in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
            states.append(small_trainer().fit(job(kind)).state_dict())
            assert torch.equal(torch.random.get_rng_state(), before[0])
            assert np.random.get_state()[1].tolist() == before[1]
    assert states_equal(*states)


@pytest.mark.parametrize("kind", DESCENDING)
def test_rounds_start_from_the_same_weights_and_train_differently(kind):
    starts = []

    def recorded():
        model = net(kind)()
        starts.append({key: value.clone() for key, value in model.state_dict().items()})
        return model

    fitted = [small_trainer().fit(job(kind, net=recorded, round=index)) for index in (0, 1)]
    assert states_equal(*starts)
    assert not torch.equal(fitted[0].linear.weight, fitted[1].linear.weight)
    assert not torch.equal(fitted[0].linear.weight, starts[0]["linear.weight"])


def test_another_seed_starts_from_other_weights():
    first, second = (small_trainer().fit(job(streams=Streams(seed))) for seed in (0, 1))
    assert not torch.equal(first.body.layers[0][0].weight, second.body.layers[0][0].weight)


def test_the_convex_fit_is_the_same_in_every_round():
    first, second = (small_trainer().fit(job("linear", round=index)) for index in (0, 1))
    assert states_equal(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_fit_many_equals_fit_one_by_one(kind):
    jobs = [job(kind, n=n, round=n) for n in (20, 9, 13)]
    together = small_trainer().fit_many(jobs)
    for model, one in zip(together, reversed([small_trainer().fit(j) for j in reversed(jobs)]), strict=True):
        assert states_equal(model.state_dict(), one.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_model_is_in_eval_mode_and_without_gradients(kind):
    model = small_trainer().fit(job(kind, heads=(a_head(),)))
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    outputs = small_trainer().outputs(model, images(3))
    assert not outputs.logits.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_restore_gives_the_same_outputs_and_draws(kind):
    what = job(kind, heads=(a_head(),), augmentation=Augmentation(1), round=4)
    fitted = small_trainer().fit(what)
    restored = small_trainer().restore(what, {key: value.clone() for key, value in fitted.state_dict().items()})
    ours, theirs = small_trainer().outputs(fitted, images(9)), small_trainer().outputs(restored, images(9))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.embeddings, theirs.embeddings)
    assert torch.equal(ours.aux["mean"], theirs.aux["mean"])
    assert torch.equal(fitted.draws(ours.embeddings, 4, noise()), restored.draws(ours.embeddings, 4, noise()))
    assert not any(module.training for module in restored.modules())
    assert not any(parameter.requires_grad for parameter in restored.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_leaves_the_job_alone(kind):
    what = job(kind, weights=torch.ones(20), augmentation=Augmentation(1, True))
    small_trainer().fit(what)
    assert torch.equal(what.inputs, images())
    assert torch.equal(what.targets, torch.arange(20) % CLASSES)
    assert torch.equal(what.weights, torch.ones(20))


# what training reaches


def test_a_linear_net_reaches_the_optimum_of_sklearn():
    from sklearn.linear_model import LogisticRegression

    x, targets = blobs()
    model = small_trainer(prior_precision=0.5).fit(Job(lambda: linear((4,), CLASSES, mean=1.0, std=2.0), x, targets, Streams(0)))
    padded = np.concatenate([(x.numpy() - 1) / 2, np.ones((90, 1), np.float32)], 1)
    expected = LogisticRegression(C=2, fit_intercept=False, tol=1e-8, max_iter=1000).fit(padded, targets.numpy()).coef_
    found = torch.cat([model.linear.weight, model.linear.bias[:, None]], 1)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=0.02, atol=0.03)


def test_a_linear_net_has_the_posterior_of_its_labelled_examples():
    x, targets = blobs()
    model = small_trainer(prior_precision=0.5).fit(Job(lambda: linear((4,), CLASSES), x, targets, Streams(0)))
    p = model(x).softmax(1)[:, 1].double()
    h = torch.nn.functional.pad(x, (0, 1), value=1.0).double()
    hessian = torch.einsum("n,nd,ne->de", p * (1 - p), h, h) + 0.5 * torch.eye(5)
    factor = model.laplace.factor()[1].double()
    torch.testing.assert_close(factor @ factor.T, hessian, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", DESCENDING)
def test_descending_nets_learn_an_easy_task(kind):
    targets = torch.arange(60) % CLASSES
    x = torch.randint(0, 60, (60, *SHAPE), generator=Streams(0)("easy"), dtype=torch.uint8)
    for c in range(CLASSES):
        x[targets == c, :, 2 * c : 2 * c + 2] += 150
    fitted = small_trainer(min_steps=150, lr=0.01).fit(Job(net(kind), x[:45], targets[:45], Streams(0)))
    test = Examples(x[45:], targets[45:], number_ids(15))
    assert small_trainer().evaluate(fitted, test)["accuracy"] > 0.9


def test_virtual_examples_with_hard_targets_equal_labelled_ones():
    extra, classes = images(6, "virtual"), torch.tensor([0, 0, 1, 1, 2, 2])
    virtual = Virtual(extra, torch.nn.functional.one_hot(classes, CLASSES).float())
    with_virtual = job(virtual=virtual)
    with_labels = job(inputs=torch.cat([images(), extra]), targets=torch.cat([torch.arange(20) % CLASSES, classes]))
    fitted = small_trainer().fit(with_virtual).state_dict()
    assert states_equal(fitted, small_trainer().fit(with_labels).state_dict())
    assert not torch.equal(fitted["linear.weight"], small_trainer().fit(job()).linear.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_soft_targets_of_virtual_examples_pull_the_predictions(kind):
    extra = images(6, "virtual")
    pulled = []
    for target in ([0.8, 0.1, 0.1], [0.1, 0.1, 0.8]):
        what = job(kind, virtual=Virtual(extra, torch.tensor(target).expand(6, -1)))
        pulled.append(small_trainer(min_steps=40, lr=0.01).fit(what)(extra).softmax(1).mean(0))
    assert pulled[0][0] > pulled[1][0] + 0.1
    assert pulled[1][2] > pulled[0][2] + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_examples_alone_are_enough(kind):
    virtual = Virtual(images(6, "virtual"), torch.eye(CLASSES).repeat(2, 1))
    model = small_trainer().fit(job(kind, inputs=images(0), targets=torch.empty(0, dtype=torch.int64), virtual=virtual))
    assert model(images(3)).isfinite().all()


def test_a_job_without_any_example_says_what_to_do():
    with pytest.raises(ValueError, match="at least one labelled example to train on, got none; buy a larger initial set"):
        job(inputs=images(0), targets=torch.empty(0, dtype=torch.int64))


def test_a_weight_of_zero_removes_an_example_from_the_convex_fit():
    weights = torch.ones(20)
    weights[15:] = 0
    padded = small_trainer().fit(job("linear", weights=weights))
    short = small_trainer().fit(job("linear", n=15, inputs=images()[:15]))
    torch.testing.assert_close(padded(images()), short(images()), rtol=0.02, atol=0.02)
    assert (padded(images()) - small_trainer().fit(job("linear"))(images())).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_label_of_an_example_of_weight_zero_does_not_matter(kind):
    weights = torch.ones(20)
    weights[7] = 0
    targets = torch.arange(20) % CLASSES
    changed = targets.clone()
    changed[7] = (changed[7] + 1) % CLASSES
    first, second = (small_trainer().fit(job(kind, targets=t, weights=weights)).state_dict() for t in (targets, changed))
    assert states_equal(first, second)
    assert not states_equal(first, small_trainer().fit(job(kind, targets=changed)).state_dict())


def test_every_epoch_sees_every_example_once_in_batches_of_nearly_equal_size():
    seen = []
    head = a_head(loss=lambda batch: seen.append((batch.epoch, batch.epochs, batch.rows.tolist())) or batch.outputs.mean())
    small_trainer(epochs=2, min_steps=10).fit(job(heads=(head,)))
    assert len(seen) == 12  # 3 batches of at most 8; 10 steps need 4 epochs
    assert {len(rows) for _, _, rows in seen} == {6, 7}
    orders = [[row for epoch, _, rows in seen if epoch == e for row in rows] for e in range(4)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1]
    assert {epochs for _, epochs, _ in seen} == {4}


def test_every_round_has_an_order_of_its_own():
    seen = []
    head = a_head(loss=lambda batch: seen.append(batch.rows.tolist()) or batch.outputs.mean())
    for index in (0, 1, 1):
        small_trainer().fit(job(heads=(head,), round=index))
    first, second, again = seen[:6], seen[6:12], seen[12:]
    assert first != second == again


def test_dropout_acts_while_training():
    rates = [lambda rate=rate: mlp(SHAPE, CLASSES, width=8, mean=128.0, std=64.0, dropout=rate) for rate in (0.0, 0.5)]
    without, dropped = (small_trainer().fit(job(net=make)) for make in rates)
    assert not torch.equal(without.linear.weight, dropped.linear.weight)


def test_the_learning_rate_warms_up_and_decays_to_nothing(monkeypatch):
    rates, original = [], torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    small_trainer(min_steps=30, lr=0.5).fit(job("small_cnn", n=8))  # MLPs: see tests/test_stacked.py
    assert len(rates) == 30
    assert rates[:3] == pytest.approx([0.5 / 3, 1 / 3, 0.5])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.01


# extra heads


class Mean(nn.Module):
    """One linear unit on the last stage's channels."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, stages):
        last = stages[-1]
        return self.linear(last.flatten(2).mean(2) if last.dim() > 2 else last)


def a_head(name="mean", joint=False, loss=lambda batch: (batch.outputs - 3).square().mean()):
    return Head(name, lambda shapes, classes, count: Mean(shapes[-1][0]), loss, joint)


def frozen_with_batch_norm():
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5))
    return TaskModel(body, 5, CLASSES, mean=128.0, std=64.0, solver="lbfgs")


NETS = {kind: net(kind) for kind in KINDS} | {"frozen body with batch norm": frozen_with_batch_norm}


@pytest.mark.parametrize("kind", NETS)
def test_a_head_on_detached_features_does_not_change_the_task_model(kind):
    plain = small_trainer().fit(job(net=NETS[kind], augmentation=Augmentation(1)))
    headed = small_trainer().fit(job(net=NETS[kind], augmentation=Augmentation(1), heads=(a_head(),)))
    assert states_equal(plain.state_dict(), headed.state_dict())
    assert headed.state_dict().keys() - plain.state_dict().keys() == {"aux.mean.linear.weight", "aux.mean.linear.bias"}


@pytest.mark.parametrize("heads", [(), (a_head(),)])
def test_a_frozen_body_keeps_its_running_statistics(heads):
    what = job(net=frozen_with_batch_norm, heads=heads)
    fitted = small_trainer().fit(what)
    assert (fitted.body[2].running_mean == 0).all()
    assert fitted.body[2].num_batches_tracked == 0
    restored = small_trainer().restore(what, fitted.state_dict())
    assert torch.equal(restored.laplace.factor(), fitted.laplace.factor())


@pytest.mark.parametrize("kind", DESCENDING)
def test_a_joint_head_does_change_the_body(kind):
    plain, joint = small_trainer().fit(job(kind)), small_trainer().fit(job(kind, heads=(a_head(joint=True),)))
    body = [key for key in plain.state_dict() if key.startswith("body.") and key.endswith("weight")]
    assert all(not torch.equal(plain.state_dict()[key], joint.state_dict()[key]) for key in body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_learns(kind):
    trainer = small_trainer(min_steps=150, lr=0.05, weight_decay=0.0)
    outputs = trainer.outputs(trainer.fit(job(kind, heads=(a_head(),))), images())
    assert float((outputs.aux["mean"] - 3).square().mean()) < 1


def test_a_head_does_not_shift_the_initial_weights_of_another():
    alone = small_trainer().fit(job(heads=(a_head("b"),))).state_dict()
    beside = small_trainer().fit(job(heads=(a_head("a"), a_head("b")))).state_dict()
    assert states_equal(alone, beside)
    assert not torch.equal(beside["aux.a.linear.weight"], beside["aux.b.linear.weight"])


def test_a_head_sees_shapes_sizes_detached_logits_and_its_own_batch():
    built, batches = [], []

    def build(shapes, classes, count):
        built.append((shapes, classes, count))
        return Mean(shapes[-1][0])

    def loss(batch):
        batches.append(batch)
        return batch.outputs.mean()

    model = small_trainer().fit(job("small_cnn", heads=(Head("mean", build, loss),)))
    assert built == [([(4, 3, 3), (5, 3, 3)], CLASSES, 20)]
    for batch in batches:
        assert batch.module is model.aux["mean"]
        assert not batch.logits.requires_grad
        assert batch.outputs.shape == (len(batch.rows), 1)
        assert batch.outputs.dtype == batch.logits.dtype == torch.float32
        assert batch.targets.argmax(1).tolist() == (batch.rows % CLASSES).tolist()


# outputs and evaluation


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_show_embeddings_logits_and_every_extra_head(kind):
    trainer = small_trainer(precision="float32", inference_batch=4)
    model = trainer.fit(job(kind, heads=(a_head(), a_head("other"))))
    outputs = trainer.outputs(model, images(9))
    stages, h = model.stages(images(9))
    assert outputs.aux.keys() == {"mean", "other"}
    for name, values in outputs.aux.items():
        torch.testing.assert_close(values, model.aux[name](stages))
    torch.testing.assert_close(outputs.embeddings, h)
    torch.testing.assert_close(outputs.logits, model(images(9)))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_do_not_depend_on_the_block_size(kind):
    model = small_trainer().fit(job(kind))
    whole, blocks = (small_trainer(inference_batch=size, precision="float32").outputs(model, images(9)) for size in (100, 2))
    torch.testing.assert_close(whole.logits, blocks.logits)
    torch.testing.assert_close(whole.embeddings, blocks.embeddings)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_no_inputs_are_empty(kind):
    trainer = small_trainer()
    model = trainer.fit(job(kind))
    outputs = trainer.outputs(model, images(0))
    assert outputs.embeddings.shape == (0, model.feature_dim)
    assert outputs.logits.shape == (0, CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_changes_nothing(kind):
    trainer = small_trainer()
    model = trainer.fit(job(kind))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = trainer.outputs(model, images(9))
    trainer.evaluate(model, Examples(images(9), torch.arange(9) % CLASSES, number_ids(9)))
    assert torch.equal(trainer.outputs(model, images(9)).logits, first.logits)
    assert states_equal(before, model.state_dict())


def test_evaluation_leaves_unknown_targets_out():
    trainer = small_trainer()
    model, targets = trainer.fit(job()), torch.arange(9) % CLASSES
    hidden = targets.clone()
    hidden[5:] = -1
    expected = classification(trainer.outputs(model, images(9)[:5]).logits, targets[:5])
    assert trainer.evaluate(model, Examples(images(9), hidden, number_ids(9))) == pytest.approx(expected)


def test_evaluation_of_an_empty_or_unlabelled_split_is_empty():
    trainer = small_trainer()
    model = trainer.fit(job())
    assert trainer.evaluate(model, Examples(images(0), torch.empty(0, dtype=torch.int64), ())) == {}
    assert trainer.evaluate(model, Examples(images(3), torch.full((3,), -1), number_ids(3))) == {}


# augmentation


@contextlib.contextmanager
def counted_augmentation():
    calls, original = [], alenv.trainer.augmented

    def counted(x, how, generator):
        calls.append(len(x))
        return original(x, how, generator)

    with pytest.MonkeyPatch.context() as patch:
        for module in (alenv.trainer, alenv.stacked):
            patch.setattr(module, "augmented", counted)
        yield calls


@pytest.mark.parametrize("kind", DESCENDING)
def test_training_augments_every_batch_and_evaluation_none(kind):
    what = job(kind, augmentation=Augmentation(2, True))
    with counted_augmentation() as calls:
        model = small_trainer().fit(what)
        assert sum(calls) == 20 * 2
        calls.clear()
        small_trainer().outputs(model, images(5))
        small_trainer().evaluate(model, Examples(images(6), torch.arange(6) % CLASSES, number_ids(6)))
        small_trainer().restore(what, model.state_dict())
        assert calls == []
    assert not states_equal(model.state_dict(), small_trainer().fit(replace(what, augmentation=None)).state_dict())


def test_what_cannot_or_must_not_be_augmented_is_not():
    how = Augmentation(2, True)
    vectors, targets = blobs(20)
    with counted_augmentation() as calls:
        small_trainer(augment=False).fit(job(augmentation=how))
        small_trainer().fit(job("linear", augmentation=how, heads=(a_head(),)))
        small_trainer().fit(Job(net("mlp", (4,)), vectors, targets, Streams(0), augmentation=how))
        small_trainer().fit(job())
    assert calls == []


# device and precision


def on_the_bfloat16_grid(values):
    return torch.equal(values.bfloat16().float(), values)


@pytest.mark.parametrize(
    ("precision", "native", "half"),
    [("auto", True, True), ("auto", False, False), ("float32", True, False), ("bfloat16", False, True)],
)
def test_images_run_in_bfloat16_where_it_is_native_or_asked_for(precision, native, half, monkeypatch):
    monkeypatch.setattr(inference, "has_native_bfloat16", lambda device: native)
    trainer = small_trainer(precision=precision)
    model = trainer.fit(job("small_cnn"))
    outputs = trainer.outputs(model, images(9))
    assert on_the_bfloat16_grid(outputs.embeddings) is half
    assert model.body.blocks[1][0].weight.is_contiguous(memory_format=torch.channels_last) is half
    assert outputs.embeddings.dtype == outputs.logits.dtype == model.linear.weight.dtype == torch.float32
    assert not on_the_bfloat16_grid(outputs.logits)  # the head itself always runs in float32


def test_vectors_run_in_float32(monkeypatch):
    monkeypatch.setattr(inference, "has_native_bfloat16", lambda device: True)
    vectors, targets = blobs(20)
    model = small_trainer().fit(Job(net("mlp", (4,)), vectors, targets, Streams(0)))
    outputs = small_trainer().outputs(model, vectors)
    assert torch.equal(outputs.embeddings, model.features(vectors))
    assert not on_the_bfloat16_grid(outputs.embeddings)


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_bfloat16_from_compute_capability_8(capability, native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_native_bfloat16(torch.device("cuda")) is native


@pytest.mark.parametrize(("avx", "amx", "native"), [(False, False, False), (True, False, True), (False, True, True)])
def test_a_cpu_has_bfloat16_with_avx512_or_amx(avx, amx, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_native_bfloat16(torch.device("cpu")) is native


def test_a_torch_that_cannot_tell_has_no_native_bfloat16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not has_native_bfloat16(torch.device("cpu"))


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


def test_a_device_may_be_a_name_or_a_device():
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")


def test_a_device_that_is_no_device_says_what_is():
    with pytest.raises(ValueError, match="expected device=auto, cpu, cuda or cuda:N, got 'gpu'"):
        pick_device("gpu")


@pytest.mark.parametrize(("device", "available", "count"), [("cuda", False, 0), ("cuda:0", False, 0), ("cuda:2", True, 2)])
def test_a_gpu_that_is_not_there_says_how_many_are(device, available, count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=f"device={device}: this machine has {count} CUDA devices; use device=cpu"):
        Trainer(device)


def test_a_device_torch_knows_but_was_not_built_for_is_refused():
    absent = "xpu" if not torch.xpu.is_available() else "mps"
    for device in (absent, "meta"):
        with pytest.raises(ValueError, match=f"device={device} does not work on this machine; use device=cpu or device=auto"):
            pick_device(device)
