"""Texts as tensors: tf-idf features that any net takes, or the tokens that a transformer takes."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alenv.datasets.store import Allocate, kept
from alenv.task import Examples, Source, Tokens

AT_ONCE = 4096  # texts that are tokenised together


class Corpus(NamedTuple):
    """Texts, class numbers (n,) (-1 where unknown) and ids."""

    texts: Sequence[str]
    targets: Tensor
    ids: tuple[str, ...]


class Reading(NamedTuple):
    """How texts become inputs; the text readers take these as parameters.

    Attributes:
        text: "tfidf": tf-idf of words, brought to `width` features; needs no model and suits net=linear. "tokens": numbers of
            the tokens of `tokenizer`, for a transformer.
        width: features of tf-idf: the leading singular directions of the training texts (latent semantic analysis).
        tokenizer: for tokens: folder (or hub name, if it is in the local cache) of a transformers tokenizer.
        length: tokens per text; longer texts are cut.
        cache: where the result is kept, see `alenv.datasets.store.kept`.
    """

    text: Literal["tfidf", "tokens"] = "tfidf"
    width: int = 256
    tokenizer: str | None = None
    length: int = 128
    cache: str | None = "auto"


def text_source(name: str, train: Corpus, test: Corpus | None, classes: Sequence[str], reading: Reading) -> Source:
    """Return the data set of two corpora; the texts themselves stay reachable as `Examples.texts`.

    Nothing is learned from test texts or from labels: words, their weights and directions come from the training texts.

    Raises:
        ValueError: a text is missing, or the tokenizer is.
    """
    parts = [part for part in (train, test) if part is not None]
    for part in parts:
        bad = next((i for i, text in enumerate(part.texts) if not isinstance(text, str)), None)
        if bad is not None:
            raise ValueError(f"{name}: example {part.ids[bad]} has no text ({part.texts[bad]!r}); write one or drop the row")
    if reading.text not in ("tfidf", "tokens"):
        raise ValueError(f"expected dataset.text=tfidf or tokens, got '{reading.text}'")
    texts = [text for part in parts for text in part.texts]
    tokens = None
    mean, std = torch.zeros(()), torch.ones(())
    if reading.text == "tokens":
        inputs, tokens = _tokens(texts, reading)
    else:
        inputs = _tfidf(texts, len(train.texts), reading)
        std = inputs[: len(train.texts)].double().square().mean().sqrt().float().clamp(min=1e-6)
    cut = inputs.split([len(part.texts) for part in parts])
    made = [Examples(x, p.targets, p.ids, p.texts) for x, p in zip(cut, parts, strict=True)]
    return Source(name, made[0], made[1] if test is not None else None, tuple(classes), mean, std, tokens=tokens)


def _tfidf(texts: Sequence[str], fitted: int, reading: Reading) -> Tensor:
    """Return (n, width): directions and weights fitted to the first `fitted` texts."""

    def make(allocate: Allocate) -> None:
        from scipy.sparse import vstack
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import normalize
        from sklearn.utils.extmath import randomized_svd

        weigh = TfidfVectorizer(sublinear_tf=True, min_df=2 if fitted > 1000 else 1, max_features=50_000, dtype=np.float32)
        try:
            words = weigh.fit_transform(texts[:fitted])
        except ValueError as error:
            raise ValueError(f"no words in the training texts ({error}); is this the text column?") from error
        width = min(reading.width, *(size - 1 for size in words.shape))
        if width < 2:
            raise ValueError(f"expected at least three texts with three different words, got shape {words.shape}")
        directions = randomized_svd(words, width, n_iter=2, random_state=0)[2].T
        words = vstack([words, weigh.transform(texts[fitted:])]) if fitted < len(texts) else words
        array = allocate((len(texts), width), "float32")
        for start in range(0, len(texts), AT_ONCE):
            array[start : start + AT_ONCE] = normalize(words[start : start + AT_ONCE] @ directions)

    return kept(_key("tfidf 1", texts, fitted, reading.width), make, reading.cache)


def _tokens(texts: Sequence[str], reading: Reading) -> tuple[Tensor, Tokens]:
    """Return (n, length) token numbers, filled up with the padding token."""
    tokenizer = _tokenizer(reading.tokenizer)

    def make(allocate: Allocate) -> None:
        array = allocate((len(texts), reading.length), "int32")
        for start in range(0, len(texts), AT_ONCE):
            found = tokenizer(
                list(texts[start : start + AT_ONCE]), truncation=True, max_length=reading.length, padding="max_length",
                return_attention_mask=False, return_token_type_ids=False,
            )  # fmt: skip
            array[start : start + AT_ONCE] = np.asarray(found["input_ids"], dtype=np.int32)

    facts = (len(tokenizer), tokenizer.pad_token_id, tokenizer.padding_side, reading.length)
    probe = tokenizer(list(texts[:64]))["input_ids"]  # a tokenizer of the same words may split otherwise
    inputs = kept(_key("tokens 1", texts, *facts, sorted(tokenizer.get_vocab().items()), probe), make, reading.cache)
    assert reading.tokenizer is not None
    return inputs, Tokens(reading.tokenizer, len(tokenizer), int(tokenizer.pad_token_id))


def _tokenizer(name: str | None) -> Any:
    from transformers import AutoTokenizer

    if name is None:
        raise ValueError("dataset.text=tokens needs dataset.tokenizer: the folder of a transformers tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"no tokenizer '{name}' on this machine ({first}); set dataset.tokenizer to the folder of one, or fetch it once "
            f"with: hf download {name}"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"tokenizer '{name}' has no padding token; choose one that has, or set pad_token in its folder")
    return tokenizer


def _key(kind: str, texts: Sequence[str], *facts: Any) -> str:
    digest = hashlib.blake2b(f"{kind} {facts!r}".encode(), digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
