"""Transformers for texts: sequence classifiers of the transformers library, offline first."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from alenv.model import TaskModel, Tune, solver_of
from alenv.task import Tokens
from alenv.texts import from_files, model_folder, quiet

STAGES = 4  # hidden layers that are handed out
OWN_DROPOUT = ("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "summary_last_dropout")


class TokenModel(TaskModel):
    """A task model whose stored inputs are numbers of tokens."""

    def normalized(self, x: Num[Tensor, "B ..."]) -> Num[Tensor, "B ..."]:
        """Return the numbers as they are."""
        return x.long()

    def lengths(self, x: Num[Tensor, "B ..."]) -> Int[Tensor, " B"]:
        """Return how many tokens each text has."""
        return x.ne(self.pad).sum(1)

    @property
    def pad(self) -> int:
        """The number that fills up shorter texts."""
        pad: Any = self.body.pad
        return pad


class _Body(nn.Module):
    """A sequence classifier up to its last linear layer: what that one would see is what comes out."""

    def __init__(self, net: Any, pad: int) -> None:
        super().__init__()
        self.net, self.pad = net, pad
        self.width = _behead(net)

    def forward(self, x: Int[Tensor, "B n"]) -> Float[Tensor, "B D"]:
        return self._run(x).logits

    def stages(self, x: Int[Tensor, "B n"]) -> tuple[list[Tensor], Float[Tensor, "B D"]]:
        """Return the first token's states after evenly spaced layers, and the features."""
        out = self._run(x, output_hidden_states=True)
        layers = out.hidden_states[1:]
        chosen = torch.linspace(0, len(layers) - 1, min(STAGES, len(layers))).round().int().tolist()
        return [layers[i][:, 0] for i in chosen], out.logits

    def _run(self, x: Int[Tensor, "B n"], **options: Any) -> Any:
        mask = x != self.pad
        used = mask.any(0)
        used[0] = True  # a batch of empty texts
        return self.net(input_ids=x[:, used], attention_mask=mask[:, used].long(), **options)


def transformer(
    input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0, path: str | None = None,
    config: Mapping[str, Any] | None = None, tune: Tune = "all", dropout: float = 0.1, download: bool = False,
    tokens: Tokens | None = None,
) -> TaskModel:  # fmt: skip
    """Return a transformer with a new linear head on what its own classifier feeds its last layer.

    Padding is masked, and cut where a whole batch has it.

    Args:
        input_shape: (tokens,).
        num_outputs: C.
        mean: unused: tokens are not normalised.
        std: unused.
        path: folder of a model with safetensors weights, or its name on the hub if it is in the local cache.
        config: in place of `path`, of an untrained net: `model_type` and what its configuration takes.
        tune: "all" trains everything from the first step; "probe" fits the head first, then trains everything (Kumar et al.,
            ICLR 2022); "head" leaves the body as it is and fits the head to its optimum.
        dropout: in front of the head.
        download: ask the hub for what is not on this machine.
        tokens: of the task.
    """
    if tokens is None or len(input_shape) != 1:
        raise ValueError(
            "net=transformer reads tokens, and this data set has none; choose a data set of texts with dataset.text=tokens "
            "dataset.tokenizer=<the model's folder>, or net=mlp"
        )
    net = _made(path, config, tokens, num_outputs, download)
    body = _Body(net, tokens.pad)
    return TokenModel(
        body, body.width, num_outputs, dropout=0.0 if tune == "head" else dropout, solver=solver_of(tune),
        companion=lambda outputs: transformer(
            input_shape, outputs, mean, std, path, config, "all" if tune == "head" else tune, dropout, download, tokens
        ),
    )  # fmt: skip


def _made(path: str | None, config: Mapping[str, Any] | None, tokens: Tokens, outputs: int, download: bool) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if (path is None) == (config is None):
        raise ValueError("net=transformer: expected either net.path=<folder of a model> or net.config={model_type: ...}")
    if config is not None:
        found = AutoConfig.for_model(**{"vocab_size": tokens.vocabulary, "pad_token_id": tokens.pad, **config})
    else:
        found = AutoConfig.from_pretrained(str(model_folder(path, download)), local_files_only=True, trust_remote_code=False)
    if found.get_text_config().vocab_size < tokens.vocabulary:
        raise ValueError(
            f"the net knows {found.get_text_config().vocab_size} tokens, the tokenizer {tokens.tokenizer} has "
            f"{tokens.vocabulary}; set dataset.tokenizer to the folder of the net's own"
        )
    found.num_labels = outputs
    found.pad_token_id = tokens.pad
    for name in OWN_DROPOUT:  # ours, in front of the head, takes its place
        if hasattr(found, name):
            setattr(found, name, 0.0)
    with quiet():
        if config is not None:
            make: Any = AutoModelForSequenceClassification.from_config
            return make(found)
    return from_files("AutoModelForSequenceClassification", model_folder(path, download), config=found)


def _behead(net: Any) -> int:
    """Replace the last linear layer by the identity; return its width."""
    ends = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear) and m.out_features == net.config.num_labels]
    if not ends:
        raise ValueError(f"{type(net).__name__} does not end in a linear layer; choose another model")
    name, head = ends[-1]
    net.set_submodule(name, nn.Identity())
    return head.in_features
