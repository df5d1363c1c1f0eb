"""Text encoders of the transformers library, from files."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alenv.embedding import Frozen, Reads, digest_of_files
from alenv.texts import from_files, model_folder, tokenizer


class Transformers(Frozen):
    """Last hidden states of a transformer, made one vector per text.

    Args:
        path: folder of a model (config, safetensors weights, tokenizer), or its name on the hub if it is in the local cache.
        pooling: "mean" over the tokens of a text, or "first", the state of its first token.
        normalize: scale to length 1.
        length: tokens per text at most; longer texts are cut.
        prefix: put in front of every text, for models trained with instructions.
        download: ask the hub for what is not on this machine.
        batch_size: texts per forward pass.
    """

    reads: Reads = "texts"
    telling = ("download", "path")

    def __init__(
        self, path: str | None = None, pooling: Literal["mean", "first"] = "mean", normalize: bool = True, length: int = 256,
        prefix: str = "", download: bool = False, batch_size: int = 64,
    ) -> None:  # fmt: skip
        if pooling not in ("mean", "first"):
            raise ValueError(f"expected pooling=mean or first, got '{pooling}'")
        self.path, self.pooling, self.normalize, self.length = path, pooling, normalize, length
        self.prefix, self.download, self.batch_size = prefix, download, batch_size

    def weights_digest(self) -> str:
        """Return a hash of the model's files: weights, configuration and tokenizer."""
        folder = model_folder(self.path, self.download)
        kinds = ("*.safetensors", "*.json", "*.txt", "*.model")
        return digest_of_files([file for kind in kinds for file in folder.glob(kind)])

    def load(self, device: torch.device) -> Callable[[Any], Tensor]:
        """Return the function from texts to vectors."""
        folder = model_folder(self.path, self.download)
        model = from_files("AutoModel", folder).to(device).eval()
        tokenize = tokenizer(folder)

        def vectors(texts: list[str]) -> Tensor:
            tokens = tokenize(
                [self.prefix + text for text in texts], truncation=True, max_length=self.length, padding=True, return_tensors="pt"
            ).to(device)
            states = model(**tokens).last_hidden_state.float()  # (b, tokens, F)
            mask = tokens["attention_mask"].unsqueeze(2)
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1) if self.pooling == "mean" else states[:, 0]
            return F.normalize(pooled, dim=1) if self.normalize else pooled

        return vectors
