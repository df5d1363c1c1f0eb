"""Frozen encoders: what they compute, the files they keep, and data sets on their features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alenv import embedding, library
from alenv.campaign import Plan
from alenv.embedding import Given, Shown, embed, embedded
from alenv.memory import in_blocks
from alenv.problem import assemble
from alenv.runner import Runner
from alenv.streams import Streams
from alenv.task import Examples, Source, number_ids
from alenv.vision import imagenet_images, torchvision_body

WORDS = ["alpha", "beta", "gamma", "delta", "good", "bad", "long", "short"]
CPU = torch.device("cpu")


class Twice(nn.Module):
    """A module of the user's own that counts its calls."""

    def __init__(self, width: int = 3, power: float = 2.0) -> None:
        super().__init__()
        self.linear = nn.Linear(6, width)
        self.power, self.seen = power, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.linear(x.flatten(1)) * self.power


def lengths(texts: list[str]) -> np.ndarray:
    """A function of texts, as WordLlama's `embed` is."""
    return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float64)


def texts(count: int = 30) -> tuple[str, ...]:
    draw = torch.randint(len(WORDS), (count, 12), generator=Streams(0)("words")).tolist()
    return tuple(" ".join(WORDS[w] for w in row[: 2 + i % 10]) for i, row in enumerate(draw))


def a_source(kind: str = "table", count: int = 60) -> Source:
    shape = {"table": (6,), "images": (3, 8, 8), "grey": (1, 8, 8)}[kind]
    x = torch.randint(0, 256, (count, *shape), generator=Streams(0)("x"), dtype=torch.uint8)
    said = texts(count)
    cut = count * 2 // 3
    targets = torch.arange(count) % 2
    parts = [
        Examples(x[rows], targets[rows], number_ids(len(targets[rows]), name), said[rows])
        for name, rows in (("a", slice(cut)), ("t", slice(cut, None)))
    ]
    return Source("made", parts[0], parts[1], ("even", "odd"), torch.tensor(100.0), torch.tensor(50.0))


def shown(source: Source) -> Shown:
    return Shown(source.train.inputs, source.train.texts, source.mean, source.std)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny BERT with random weights and a tokenizer of eight words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with Streams(0).scoped("bert"):
        BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    return str(folder)


# what is computed


def test_a_module_encodes_normalised_inputs_in_evaluation_mode() -> None:
    with Streams(0).scoped("twice"):
        module = nn.Sequential(Twice(), nn.Dropout(0.5)).train()
    source = a_source()
    found = embed(Given(module, batch_size=7), shown(source), CPU)
    assert not module.training
    expected = module((source.train.inputs.float() - 100) / 50)
    torch.testing.assert_close(found, expected)


def test_images_are_resized_to_rgb_and_normalised_as_imagenet() -> None:
    x = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    out = imagenet_images(x, 6)
    assert out.shape == (2, 3, 6, 6)
    torch.testing.assert_close(out[0, :, 3, 3], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))
    with pytest.raises(ValueError, match=r"bytes, or as floats in 0..1, got floats in -1..1"):
        imagenet_images(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2), 6)


def test_texts_are_encoded_in_batches_of_like_length_and_returned_in_their_order() -> None:
    source, seen = a_source(), []

    def noted(batch: list[str]) -> np.ndarray:
        seen.append([len(text) for text in batch])
        return lengths(batch)

    found = embed(Given(noted, "texts", batch_size=8), shown(source), CPU)
    assert found.tolist() == [[len(t), t.count("a")] for t in source.train.texts or ()]
    flat = [n for batch in seen for n in batch]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_transformer_pools_the_states_of_each_text_alone(bert: str, pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    source = a_source()
    encoder = library.build("encoder", {"name": "transformers", "path": bert, "pooling": pooling, "batch_size": 16})
    found = embed(encoder, shown(source), CPU)
    model, tokenize = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    for i in (0, 7, 11):
        assert source.train.texts is not None
        states = model(**tokenize(source.train.texts[i], return_tensors="pt")).last_hidden_state[0]
        pooled = states.mean(0) if pooling == "mean" else states[0]
        torch.testing.assert_close(found[i], (pooled / pooled.norm()).detach(), rtol=1e-4, atol=1e-5)


def test_weights_in_a_pickle_are_not_opened(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "weights.pth")
    with (
        Streams(0).scoped("net"),
        pytest.raises(ValueError, match="pickles are not opened: save the state dict with safetensors"),
    ):
        torchvision_body("resnet18", str(tmp_path / "weights.pth"))


def test_a_torchvision_net_hands_out_what_its_last_layer_would_see(tmp_path: Path) -> None:
    from torchvision import models

    with Streams(1).scoped("net"):
        net = models.get_model("mobilenet_v3_small", weights=None, num_classes=4).eval()
    path = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), path)
    encoder = library.build("encoder", "torchvision", model="mobilenet_v3_small", weights=str(path), side=32)
    source = a_source("grey")
    found = embed(encoder, shown(source), CPU)
    assert found.shape == (40, 1024)
    expected = net(imagenet_images(source.train.inputs[:5], 32))
    torch.testing.assert_close(net.classifier[-1](found[:5]), expected, rtol=1e-4, atol=1e-4)
    with Streams(0).scoped("other"), pytest.raises(ValueError, match="holds no weights of resnet18: missing"):
        torchvision_body("resnet18", str(path))


# files


def test_features_are_computed_once_and_then_read_from_a_checked_file(tmp_path: Path) -> None:
    with Streams(0).scoped("twice"):
        module = Twice()
    source = a_source()
    first = embed(Given(module), shown(source), CPU, tmp_path)
    again = embed(Given(module, batch_size=3), shown(source), CPU, tmp_path)
    assert module.seen == 40, "the size of batches changes nothing"
    assert torch.equal(first, again)
    (file,) = (tmp_path / "embeddings").glob("*.npy")
    said = json.loads(file.with_suffix(".json").read_text())
    assert said["shape"] == [40, 3]
    assert said["checksum"].startswith("crc32 ")
    assert set(file.parent.iterdir()) == {file, file.with_suffix(".json")}


def test_other_weights_data_or_parameters_make_another_file(tmp_path: Path) -> None:
    def files() -> int:
        return len(list((tmp_path / "embeddings").glob("*.npy")))

    with Streams(0).scoped("twice"):
        module = Twice()
    embed(Given(module), shown(a_source()), CPU, tmp_path)
    with torch.no_grad():
        module.linear.weight[0, 0] += 1e-3
    embed(Given(module), shown(a_source()), CPU, tmp_path)
    assert files() == 2
    embed(Given(module), shown(a_source(count=90)), CPU, tmp_path)
    assert files() == 3
    other = a_source()
    embed(Given(module), Shown(other.train.inputs, None, other.mean, other.std * 2), CPU, tmp_path)
    assert files() == 4
    embed(Given(lengths, "texts"), shown(a_source()), CPU, tmp_path)
    assert files() == 5


def test_a_damaged_file_is_named_and_not_used(tmp_path: Path) -> None:
    source = a_source()
    embed(Given(lengths, "texts"), shown(source), CPU, tmp_path)
    (file,) = (tmp_path / "embeddings").glob("*.npy")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=rf"{file.name} is damaged; delete it"):
        embed(Given(lengths, "texts"), shown(source), CPU, tmp_path)
    file.unlink()
    assert embed(Given(lengths, "texts"), shown(source), CPU, tmp_path).shape == (40, 2)


def test_a_folder_that_cannot_hold_features_is_warned_of(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match="embeddings are not kept"):
        assert embed(Given(lengths, "texts"), shown(a_source()), CPU, blocked).shape == (40, 2)


def test_features_are_mapped_and_writing_to_them_does_not_reach_the_file(tmp_path: Path) -> None:
    source = a_source()
    embed(Given(lengths, "texts"), shown(source), CPU, tmp_path)
    found = embed(Given(lengths, "texts"), shown(source), CPU, tmp_path)
    assert isinstance(embedding._read(next((tmp_path / "embeddings").glob("*.npy"))), np.memmap)
    found[0, 0] = -1
    assert embed(Given(lengths, "texts"), shown(source), CPU, tmp_path)[0, 0] != -1


# memory


def test_blocks_are_halved_where_memory_does_not_suffice_and_nothing_is_lost() -> None:
    tried = []

    def compute(rows: slice) -> int:
        tried.append(rows.stop - rows.start)
        if rows.stop - rows.start > 3:
            raise torch.OutOfMemoryError("no")
        return rows.stop - rows.start

    with pytest.warns(UserWarning, match="out of memory; going on with"):
        done = list(in_blocks(compute, 10, 8, "work"))
    assert [rows.start for rows, _ in done] == [0, 2, 4, 6, 8]
    assert tried[:3] == [8, 4, 2]
    with pytest.raises(torch.OutOfMemoryError):
        list(in_blocks(lambda rows: compute(slice(0, 9)), 2, 1, "work"))


# data sets and runs


def test_an_embedded_data_set_is_centred_and_scaled_by_its_training_examples() -> None:
    source = embedded(a_source(), Given(lengths, "texts"), CPU, None)
    x = (source.train.inputs - source.mean) / source.std
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    assert float(x.square().mean()) == pytest.approx(1, abs=1e-4)
    assert source.test is not None
    assert source.test.inputs.shape == (20, 2)
    assert source.train.texts == a_source().train.texts


def test_a_run_on_embeddings_reads_them_from_the_cache_and_loads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALENV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my_encoder.py").write_text(
        "import torch\ncalls = []\n\ndef encode(x):\n    calls.append(len(x))\n    return x.flatten(1)[:, ::2]\n"
    )
    config = {
        "embed": {"name": "module", "target": "my_encoder:encode"}, "device": "cpu",
        "selector": {"name": "fixed", "strategy": "margin"}, "budget": {"initial": 20, "batch": 10, "rounds": 1},
    }  # fmt: skip
    run = Runner.of(config, tmp_path / "run").run()
    assert run.model.feature_dim == 32
    import my_encoder  # type: ignore[import-not-found]

    before = len(my_encoder.calls)
    from alenv.runner import load_run

    again = load_run(tmp_path / "run")
    assert len(my_encoder.calls) == before, "nothing is encoded twice"
    assert torch.equal(again.model.linear.weight, run.model.linear.weight)


def test_a_frozen_encoder_serves_strategies_by_name_whatever_the_seed(tmp_path: Path) -> None:
    seen = []

    def noted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1)[:, :5]

    problem = assemble(
        features={"semantic": Given(noted, batch_size=4096)}, strategies=[{"name": "typiclust", "features": "semantic"}],
        plan=Plan(initial=10, batch=5, rounds=1), device="cpu", cache=str(tmp_path),
    )  # fmt: skip
    for seed in (0, 1):
        campaign = problem.campaign(seed)
        campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(campaign.begin().indices))))
        assert len(campaign.choose(0).indices) == 5
        x = (campaign.task.inputs[:].float() - campaign.task.mean) / campaign.task.std
        torch.testing.assert_close(campaign.round.features("semantic").candidates, x.flatten(1)[campaign.round.candidates, :5])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("encoder", "kind", "message"),
    [
        ("simclr", "table", "expected a frozen encoder .* use it with features="),
        ("torchvision", "table", r"encodes images .* got inputs of shape \(6,\)"),
        ("torchvision", "images", "expected weights=<file of a state dict> or weights=DEFAULT, got none"),
        ({"name": "torchvision", "weights": "DEFAULT"}, "images", "are not on this machine .* set download=true"),
        ({"name": "torchvision", "weights": "BEST"}, "images", "no file 'BEST', nor weights of that name"),
        ({"name": "torchvision", "name_": 1}, "images", "parameter"),
        ("transformers", "table", "expected path=<folder of a transformers model"),
        (
            {"name": "transformers", "path": "nobody/nothing"},
            "table",
            "no model 'nobody/nothing' on this machine .* download=true",
        ),
        ({"name": "module", "reads": "sounds"}, "table", "expected reads=inputs, images or texts"),
        ("module", "table", "expected target=<module>:<class or function>"),
        (Given(lambda x: x[:1].flatten(1)), "table", r"expected features \(40, F\), got shape \(1, 6\)"),
        (Given(lambda x: x.log()), "table", "features are NaN or infinite"),
    ],
)
def test_what_cannot_be_embedded_is_said_in_one_sentence(
    encoder: Any, kind: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        embedded(a_source(kind), library.build("encoder", encoder), CPU, tmp_path)


def test_texts_are_asked_for_by_name_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encodes texts, and this data set has none"):
        assemble(embed={"name": "transformers", "path": str(tmp_path)}, device="cpu", cache=None)
