"""Nets of torchvision and transformers as task models: features, stages, tuning, batches of like length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alenv import library, trainer
from alenv.campaign import Plan
from alenv.job import Job
from alenv.model import TaskModel
from alenv.nets.torchvision import torchvision
from alenv.problem import assemble
from alenv.streams import Streams
from alenv.task import Examples, Source, Tokens, number_ids
from alenv.trainer import Trainer

SIZES = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
}
TOKENS = Tokens("made", vocabulary=20, pad=1)
TRAINER = {"device": "cpu", "epochs": 1, "min_steps": 3, "batch_size": 8}


def ids(count: int = 24, width: int = 12) -> Tensor:
    x = torch.randint(2, 20, (count, width), generator=Streams(0)("ids"), dtype=torch.int32)
    lengths = torch.arange(count) % width + 1
    return torch.where(torch.arange(width) < lengths[:, None], x, TOKENS.pad)


def built(name: str, shape: tuple[int, ...], outputs: int = 3, **options: Any) -> TaskModel:
    with Streams(0).scoped("init"):
        return library.build("net", name, **options)(shape, outputs).eval()


def a_transformer(kind: str = "bert", outputs: int = 3, **options: Any) -> TaskModel:
    return built("transformer", (12,), outputs, config={"model_type": kind, **SIZES[kind]}, tokens=TOKENS, **options)


def a_job(model: Any, **options: Any) -> Job:
    return Job(lambda: model(), ids(), torch.arange(24) % 3, Streams(0), **options)


# transformers


@pytest.mark.parametrize("kind", list(SIZES))
def test_features_are_what_the_models_own_last_layer_would_see(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model = a_transformer(kind)
    config = AutoConfig.for_model(kind, vocab_size=20, pad_token_id=1, num_labels=3, **SIZES[kind])
    with Streams(1).scoped("other"):
        whole = AutoModelForSequenceClassification.from_config(config).eval()
    whole.load_state_dict(model.body.net.state_dict(), strict=False)  # all but the head
    head = [m for m in whole.modules() if isinstance(m, torch.nn.Linear)][-1]
    head.load_state_dict(model.linear.state_dict())
    x = ids().long()
    expected = whole(input_ids=x, attention_mask=(x != 1).long()).logits
    torch.testing.assert_close(model(ids()), expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing() -> None:
    model = a_transformer()
    x = ids()[:3, :3]
    wide = torch.cat([x, torch.full((3, 9), TOKENS.pad, dtype=torch.int32)], 1)
    torch.testing.assert_close(model(wide), model(x))
    assert model(torch.full((2, 4), TOKENS.pad)).isfinite().all()


def test_stages_are_first_token_states_of_evenly_spaced_layers() -> None:
    model = a_transformer()
    maps, h = model.stages(ids())
    assert [tuple(m.shape) for m in maps] == [(24, 16)] * 4
    assert torch.equal(h, model.features(ids()))
    states = model.body._run(ids().long(), output_hidden_states=True).hidden_states
    assert torch.equal(maps[-1], states[-1][:, 0])
    assert torch.equal(maps[0], states[1][:, 0])


@pytest.mark.parametrize("tune", ["all", "probe", "head"])
def test_tuning_says_what_moves_and_training_repeats_bit_by_bit(tune: str) -> None:
    def make() -> TaskModel:
        return library.build("net", "transformer", config={"model_type": "bert", **SIZES["bert"]}, tune=tune, tokens=TOKENS)(
            (12,), 3
        )

    with Streams(0).scoped("init"):
        start = make().body.state_dict()
    fitted, again = (Trainer(**TRAINER).fit(a_job(make)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(fitted.state_dict().values(), again.state_dict().values(), strict=True))
    still = all(torch.equal(value, start[name]) for name, value in fitted.body.state_dict().items())
    assert still == (tune == "head")
    assert (fitted.laplace is not None) == (tune == "head")


def test_probing_starts_fine_tuning_from_the_head_at_its_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}
    monkeypatch.setattr(Trainer, "_descend", lambda _, model, *__: seen.update(head=model.linear.weight.clone()))
    Trainer(**TRAINER).fit(a_job(lambda: a_transformer(tune="probe")))
    frozen = Trainer(**TRAINER).fit(a_job(lambda: a_transformer(tune="head")))
    assert torch.equal(seen["head"], frozen.linear.weight)


def test_inference_runs_over_texts_of_like_length_and_keeps_their_order() -> None:
    model, widths = a_transformer(), []
    run = model.body._run
    model.body._run = lambda x, **options: widths.append(int((x != 1).sum(1).max())) or run(x, **options)
    found = Trainer(device="cpu", precision="float32", inference_batch=4).outputs(model, ids())
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 12
    torch.testing.assert_close(found.logits, model(ids()).detach(), rtol=1e-4, atol=1e-5)


def test_training_batches_are_of_like_length_in_random_order_and_complete() -> None:
    lengths = torch.randint(1, 100, (160,), generator=Streams(0)("lengths"))
    shuffled = torch.randperm(160, generator=Streams(0)("order"))
    batches = trainer._batches(shuffled, 20, lengths, Streams(0)("batches"))
    assert sorted(torch.cat(list(batches)).tolist()) == list(range(160))
    spread = [int(lengths[rows].max() - lengths[rows].min()) for rows in batches]
    assert sum(spread) / len(spread) < 10
    means = [float(lengths[rows].float().mean()) for rows in batches]
    assert means != sorted(means)


def test_dropout_inside_the_body_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    Trainer(**TRAINER).fit(a_job(lambda: a_transformer("distilbert")))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected either net.path=<folder of a model> or net.config"),
        (
            {"config": {"model_type": "bert", "vocab_size": 7, **SIZES["bert"]}},
            "the net knows 7 tokens, the tokenizer made has 20",
        ),
        ({"path": "no/where"}, "no model 'no/where' on this machine"),
        ({"config": {"model_type": "bert", **SIZES["bert"]}, "tune": "some"}, "expected net.tune=all, probe or head, got 'some'"),
    ],
)
def test_a_transformer_that_cannot_be_is_refused(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        built("transformer", (12,), tokens=TOKENS, **options)


def test_a_saved_model_is_read_from_its_folder_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    with Streams(3).scoped("saved"):
        saved = BertModel(BertConfig(vocab_size=20, **SIZES["bert"]))
    saved.save_pretrained(tmp_path)
    model = built("transformer", (12,), path=str(tmp_path), tokens=TOKENS)
    assert torch.equal(model.body.net.bert.embeddings.word_embeddings.weight, saved.embeddings.word_embeddings.weight)
    torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights in pickles are not loaded"):
        built("transformer", (12,), path=str(tmp_path), tokens=TOKENS)


def a_text_source() -> Source:
    x, targets = ids(60), torch.arange(60) % 2
    x[:, 0] = 2 + targets.int()  # the first word tells
    parts = [Examples(x[rows], targets[rows], number_ids(30, name)) for name, rows in (("a", slice(30)), ("t", slice(30, 60)))]
    return Source("texts", parts[0], parts[1], ("odd", "even"), tokens=TOKENS)


def test_a_campaign_on_tokens_runs_and_nets_that_do_not_read_them_are_refused() -> None:
    net = {"name": "transformer", "config": {"model_type": "bert", **SIZES["bert"]}}
    options: dict[str, Any] = {"strategies": ["margin", "badge", "bald"], "plan": Plan(initial=10, batch=5, rounds=1)}
    problem = assemble(dataset=a_text_source(), net=net, trainer=Trainer(**TRAINER), validation=0, **options)
    campaign = problem.campaign(0)
    campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(campaign.begin().indices))))
    for pick in range(3):
        assert len(campaign.suppose(pick).indices) == 5
    with pytest.raises(ValueError, match="would take numbers of tokens for measurements; use net=transformer"):
        assemble(dataset=a_text_source(), device="cpu", validation=0, **options).campaign(0)
    with pytest.raises(ValueError, match=r"net=transformer reads tokens, and this data set has none"):
        assemble(net=net, device="cpu").campaign(0)


# torchvision


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16"])
def test_nets_of_torchvision_hand_out_features_and_stages(name: str) -> None:
    side = 224 if name.startswith("vit") else 32
    with Streams(0).scoped("init"):
        model = torchvision((1, 8, 8), 3, name=name, side=side).eval()
    x = torch.full((2, 1, 8, 8), 0.5)
    with torch.no_grad():
        maps, h = model.stages(x)
        assert torch.equal(h, model.features(x))
    assert h.shape == (2, model.feature_dim)
    assert len(maps) == 4
    assert all(len(m) == 2 and m.dim() in (2, 4) for m in maps)


def test_a_net_of_torchvision_trains_probes_and_has_companions() -> None:
    x = torch.randint(0, 256, (12, 3, 16, 16), generator=Streams(0)("x"), dtype=torch.uint8)
    for tune in ("all", "head"):
        job = Job(
            lambda tune=tune: torchvision((3, 16, 16), 3, 128.0, 64.0, "resnet18", tune=tune), x, torch.arange(12) % 3, Streams(0)
        )
        model = Trainer(**TRAINER | {"min_steps": 1}).fit(job)
        assert Trainer(device="cpu").outputs(model, x).logits.isfinite().all()
        with Streams(0).scoped("companion"):
            assert model.companion(5).num_outputs == 5


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [((5,), "resnet18", "expected images"), ((3, 8, 8), "resnet17", "torchvision has no net 'resnet17'; did you mean resnet")],
)
def test_a_net_of_torchvision_that_cannot_be_is_refused(shape: tuple[int, ...], name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision(shape, 3, name=name)


# memory and precision


def test_out_of_memory_while_training_starts_again_with_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, real = [], Trainer._loss

    def loss(self: Trainer, model: TaskModel, job: Job, x: Tensor, *rest: Any) -> Tensor:
        tried.append(len(x))
        if len(x) > 4:
            raise torch.OutOfMemoryError("no")
        return real(self, model, job, x, *rest)

    monkeypatch.setattr(Trainer, "_loss", loss)
    with pytest.warns(UserWarning, match=r"out of memory while training; starting again with trainer.batch_size=4"):
        fitted = Trainer(**TRAINER).fit(a_job(lambda: a_transformer()))
    assert tried[0] == 8
    assert set(tried[1:]) == {4}
    monkeypatch.setattr(Trainer, "_loss", real)
    small = Trainer(**TRAINER | {"batch_size": 4}).fit(a_job(lambda: a_transformer()))
    assert torch.equal(fitted.linear.weight, small.linear.weight)


def test_logits_and_losses_are_float32_whatever_the_precision_of_the_body() -> None:
    from alenv.heads import Head, HeadBatch
    from alenv.nets.small_cnn import small_cnn

    seen = []

    def loss(batch: HeadBatch) -> Tensor:
        seen.append((batch.logits.dtype, batch.outputs.dtype))
        return batch.outputs.mean()

    class Last(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(width, 1)

        def forward(self, stages: list[Tensor]) -> Tensor:
            seen.append(stages[-1].dtype)
            return self.linear(stages[-1].flatten(2).mean(2))

    head = Head("last", lambda shapes, *_: Last(shapes[-1][0]), loss, False)
    x = torch.randint(0, 256, (8, 1, 6, 6), generator=Streams(0)("x"), dtype=torch.uint8)
    job = Job(lambda: small_cnn((1, 6, 6), 3, widths=(4,)), x, torch.arange(8) % 3, Streams(0), heads=(head,))
    model = Trainer(**TRAINER | {"precision": "bfloat16"}).fit(job)
    assert Trainer(device="cpu", precision="bfloat16").outputs(model, x).logits.dtype == torch.float32
    assert {d for item in seen for d in (item if isinstance(item, tuple) else (item,))} == {torch.float32}
