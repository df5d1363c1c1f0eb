"""Everything strategies may look at in one round, each thing computed lazily, once, and shared."""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from alenv.arrays import PER_CANDIDATE, Rows, check_arrays, count_classes, floats
from alenv.certainty import Beliefs, Certainty, narrow_beliefs, wide_beliefs
from alenv.features import Features, MissingOutputError, missing
from alenv.gathered import Gathered, Inputs, gathered
from alenv.inference import Outputs
from alenv.model import TaskModel, apply_heads
from alenv.ops import NARROW, softmax, top_two
from alenv.pool import OUTSIDE, Pool
from alenv.streams import Streams

BLOCK_ELEMENTS = 2**22  # numbers a block may hold at once: 16 MB of float32
KEPT_ELEMENTS = 2**26  # outputs that are kept for all strategies, where they are cheap to repeat: 256 MB of float32
MUST_BE_NUMBERS = ("probs", "logits", "embeddings", "mc_probs")  # what tells that training diverged

T = TypeVar("T")


class _Outputs(dict[str, Tensor]):
    """Outputs of extra heads by name; an absent one says so."""

    def __missing__(self, name: str) -> Tensor:
        raise MissingOutputError(missing(f"aux '{name}'", f"aux={{'{name}': ...}}"))


class Purchase(NamedTuple):
    """What was bought in a round.

    Attributes:
        indices: (B,) pool indices.
        labels: (B,) what they turned out to be; negative: discarded, see `alenv.pool`.
        outputs: what the model they were chosen with says of them, or None (the initial set is chosen without one).
    """

    indices: Int[Tensor, " B"]
    labels: Int[Tensor, " B"]
    outputs: Outputs | None = None

    @property
    def outside(self) -> Bool[Tensor, " B"]:
        """Which of them turned out to be of none of the classes."""
        return self.labels == OUTSIDE


class Round:
    """One round as strategies see it. Rows of candidates come in the order of `candidates`.

    N pool, U candidates, L labelled, C classes, D features, T stochastic draws. Build one with `Round.of_model` (campaigns) or
    `Round.from_arrays` (outputs of any model). Nothing here reads a label that was not bought.

    Attributes:
        candidates: (U,) pool indices that may be bought.
        num_classes: C.
        index: number of the round, from 1.
        num_draws: T.
        last: the previous purchase, or None.
    """

    def __init__(
        self, *, candidates: Int[Tensor, " U"], labels: Int[Tensor, " L"] | None, num_classes: int, streams: Streams,
        index: int = 1, num_draws: int = 10, last: Purchase | None = None, given: Mapping[str, Any] | None = None,
        providers: Mapping[str, Callable[["Round"], Any]] | None = None, features: Mapping[str, Features] | None = None,
        light: bool = True,
    ) -> None:  # fmt: skip
        self.candidates, self.num_classes, self._size = candidates, num_classes, len(candidates)
        self.index, self.num_draws, self.last = index, num_draws, last
        self._streams = streams.on(candidates.device)
        self._values: dict[str, Any] = {**(given or {}), **({} if labels is None else {"labels": labels})}
        self._providers = dict(providers or {})
        self._features = dict(features or {})
        self._light = light
        self._found: dict[Hashable, Any] = {}

    @classmethod
    def of_model(
        cls, model: TaskModel, pool_inputs: Num[Tensor, "N ..."] | Gathered, pool: Pool,
        outputs: Callable[[TaskModel, Inputs], Outputs], streams: Streams, *, index: int = 1, num_draws: int = 10,
        last: Purchase | None = None,
        features: Mapping[str, Rows] | None = None,
        candidates: Int[Tensor, " U"] | None = None, labeled: Int[Tensor, " L"] | None = None,
        logits: Callable[[Tensor], Tensor] | None = None, known: Mapping[str, Any] | None = None,
    ) -> "Round":  # fmt: skip
        """Return the round of a campaign: `model` is run over the candidates once, when something first asks.

        If it has a head alone and its outputs are too large to keep, it is run again for whoever asks, a block at a time.

        Args:
            model: task model of this round.
            pool_inputs: stored inputs of the pool.
            pool: who is labelled.
            outputs: runs a model over inputs (`Trainer.outputs`).
            streams: randomness of the campaign.
            index: number of the round.
            num_draws: T.
            last: previous purchase.
            features: features of the whole pool by name: what gives rows by pool index, such as an (N, F) tensor.
            candidates: pool indices that play the candidates (default: all that can be bought).
            labeled: pool indices, all labelled, that play the labelled set (default: all of them).
            logits: what returns those (u, C) of pool indices (u,), where they are known.
            known: what else is known of the candidates, by name.
        """
        candidates = pool.candidates if candidates is None else candidates
        labels = pool.targets if labeled is None else pool.labels[labeled]
        if labeled is None:
            labeled = pool.labeled
        elif bool((labels < 0).any()):
            raise ValueError("expected labelled indices, got some whose label was never bought")
        discarded = pool.discarded
        parts = (candidates, labeled, discarded, *([] if last is None else [last.indices]))
        split = {
            name: Features(name, *(functools.partial(rows.__getitem__, part) for part in parts))
            for name, rows in (features or {}).items()
        }

        def within(candidates: Tensor, labeled: Tensor, model: TaskModel) -> Round:
            return cls.of_model(
                model, pool_inputs, pool.showing(labeled), outputs, streams, index=index, num_draws=num_draws, features=features,
                candidates=candidates, labeled=labeled,
            )  # fmt: skip

        # providers take the round they serve rather than close over it: no cycle keeps a finished round's arrays alive
        providers: dict[str, Callable[[Round], Any]] = {
            "inputs": lambda round: pool_inputs[round.candidates],
            "labeled_inputs": lambda _: pool_inputs[labeled],
            "outputs": lambda round: outputs(model, round._stored(pool_inputs)),
            "embeddings": lambda round: round._get("outputs").embeddings,
            "logits": lambda round: round._pass_logits(),
            "aux": lambda round: _Outputs(round._get("outputs").aux),
            "labeled_embeddings": lambda round: outputs(model, round.labeled_inputs).embeddings,
            "discarded_inputs": lambda _: pool_inputs[discarded],
            "discarded_embeddings": lambda round: outputs(model, round.discarded_inputs).embeddings,
            "outside": lambda _: pool.labels[discarded] == OUTSIDE,
            "heads": lambda round: model.head_draws(num_draws, round.generator("noise")),
        }
        if logits is not None:
            providers |= {
                "logits": lambda round: logits(round.candidates).contiguous(),
                "probs": lambda round: softmax(logits(round.candidates)),
            }
        return cls(
            candidates=candidates, labels=labels, num_classes=pool.num_classes, streams=streams, index=index,
            num_draws=num_draws, last=last, features=split, providers=providers,
            given={
                "model": model, "pool": pool, "head": (model.linear.weight.detach(), model.linear.bias.detach()),
                "labeled_indices": labeled, "within": within, **(known or {}),
            },
            light=model.light,
        )  # fmt: skip

    @classmethod
    def from_arrays(
        cls, *, probs: Any = None, logits: Any = None, embeddings: Any = None, labels: Any = None, labeled_embeddings: Any = None,
        discarded_embeddings: Any = None, mc_probs: Any = None, head: tuple[Any, Any] | None = None,
        aux: Mapping[str, Any] | None = None, features: Mapping[str, Any] | None = None, num_classes: int | None = None,
        seed: int = 0,
    ) -> "Round":  # fmt: skip
        """Return a round made of plain tensors or numpy arrays: how a strategy is called on somebody else's model.

        What is not given and cannot be derived raises `MissingOutputError`, by name, when a strategy asks for it.

        Args:
            probs: (U, C), rows sum to one.
            logits: (U, C).
            embeddings: (U, D), the input of the last linear layer.
            labels: (L,) classes of the labelled examples.
            labeled_embeddings: (L, D).
            discarded_embeddings: (X, D) of examples bought and found to be of none of the classes.
            mc_probs: (T, U, C) of T stochastic passes.
            head: weight (C, D) and bias (C,) of the last linear layer.
            aux: outputs of extra heads over the candidates, by name.
            features: by name, the candidates' (U, F), or a tuple of these, the labelled examples' (L, F) and, if need be,
                the discarded ones' (X, F). For V views of each example, (U, V, F) and so on.
            num_classes: C, where it cannot be read off the above.
            seed: of every random choice.
        """
        arrays = {
            "probs": probs, "logits": logits, "embeddings": embeddings, "labeled_embeddings": labeled_embeddings,
            "discarded_embeddings": discarded_embeddings, "mc_probs": mc_probs,
        }  # fmt: skip
        given: dict[str, Any] = {name: floats(name, value) for name, value in arrays.items() if value is not None}
        if head is not None:
            given["head"] = (floats("head weight", head[0]), floats("head bias", head[1]))
        given["aux"] = _Outputs({name: floats(f"aux {name}", value) for name, value in (aux or {}).items()})
        tuples = {name: value if isinstance(value, tuple) else (value,) for name, value in (features or {}).items()}
        split = {
            name: Features(name, *(None if part is None else floats(f"features {name}", part) for part in parts))
            for name, parts in tuples.items()
        }
        known = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        size, device = check_arrays(given, {name: f.candidates for name, f in split.items()}, known)
        if "probs" in given:
            given["given_probs"] = given["probs"]  # what logits may be derived from: `probs` itself may come from them
        if "discarded_embeddings" in given:
            given["outside"] = torch.ones(len(given["discarded_embeddings"]), dtype=torch.bool, device=device)
        classes = count_classes(given, known, num_classes)
        return cls(
            candidates=torch.arange(size, device=device), labels=None if known is None else known.to(device),
            num_classes=classes, streams=Streams(seed),
            num_draws=len(given["mc_probs"]) if "mc_probs" in given else 10, given=given, features=split,
        )  # fmt: skip

    def __len__(self) -> int:
        """U."""
        return self._size

    def __repr__(self) -> str:
        labeled = len(self.labels) if self.has("labels") else "unknown"
        return f"Round(index={self.index}, candidates={len(self)}, labeled={labeled}, num_classes={self.num_classes})"

    @property
    def device(self) -> torch.device:
        """Where the round's tensors live."""
        return self.candidates.device

    @property
    def labels(self) -> Int[Tensor, " L"]:
        """Classes of the labelled examples."""
        return self._get("labels")

    @property
    def probs(self) -> Float[Tensor, "U C"]:
        """Class probabilities of the candidates, rows sum to one."""
        return self._get("probs")

    @property
    def top_two(self) -> Float[Tensor, "2 U"]:
        """Probabilities of each candidate's likeliest class, and of its second likeliest."""
        return self._get("top_two")

    @property
    def certainty(self) -> Certainty:
        """How certain the model is of the candidates."""
        return self._values["certainty"] if "certainty" in self._values else self.once("certainty", _certainty)

    @property
    def logits(self) -> Float[Tensor, "U C"]:
        """Logits of the candidates (log-probabilities where only those are known)."""
        return self._get("logits")

    @property
    def embeddings(self) -> Float[Tensor, "U D"]:
        """Exact inputs of the last linear layer."""
        return self._get("embeddings")

    @property
    def labeled_embeddings(self) -> Float[Tensor, "L D"]:
        """The same for the labelled examples, in the order of `labels`."""
        return self._get("labeled_embeddings")

    @property
    def discarded_embeddings(self) -> Float[Tensor, "X D"]:
        """The same for what was bought and could not be used."""
        return self._get("discarded_embeddings")

    @property
    def discarded_inputs(self) -> Num[Tensor, "X ..."]:
        """Stored inputs of what was bought and could not be used."""
        return self._get("discarded_inputs")

    @property
    def outside(self) -> Bool[Tensor, " X"]:
        """Which of the discarded are known to be of none of the classes; of the others the oracle said nothing."""
        return self._get("outside")

    @property
    def mc_probs(self) -> Float[Tensor, "T U C"]:
        """Class probabilities under T draws of the model's noise; for large pools read them by `blocks`."""
        return self._get("mc_probs")

    @property
    def head(self) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        """Weight and bias of the last linear layer."""
        return self._get("head")

    @property
    def aux(self) -> dict[str, Tensor]:
        """Outputs of the extra heads over the candidates, (U, K) each."""
        return self._get("aux")

    @property
    def model(self) -> TaskModel:
        """The task model."""
        return self._get("model")

    @property
    def inputs(self) -> Num[Tensor, "U ..."]:
        """Stored inputs of the candidates."""
        return self._get("inputs")

    @property
    def labeled_inputs(self) -> Num[Tensor, "L ..."]:
        """Stored inputs of the labelled examples, in the order of `labels`."""
        return self._get("labeled_inputs")

    @property
    def labeled_indices(self) -> Int[Tensor, " L"]:
        """Pool indices of the labelled examples, in the order of `labels`."""
        return self._get("labeled_indices")

    @property
    def pool(self) -> Pool:
        """Who is labelled."""
        return self._get("pool")

    def features(self, name: str) -> Features:
        """Return the features of provider `name`."""
        if name not in self._features:
            raise MissingOutputError(missing(f"features '{name}'", f"features={{'{name}': ...}}"))
        return self._features[name]

    def generator(self, name: str) -> torch.Generator:
        """Return a fresh generator for `name` in this round; the same name gives the same draws."""
        return self._streams(f"round/{name}", self.index)

    def scoped(self, name: str) -> AbstractContextManager[None]:
        """Seed the global generators inside the block, for library code that knows no others (the weights of a new net)."""
        return self._streams.scoped(f"round/{name}", self.index)

    def once(self, key: Hashable, compute: Callable[["Round"], T]) -> T:
        """Return `compute(self)`, computed for whoever first asks with `key`: dear results are kept here, not in strategies."""
        if key not in self._found:
            self._found[key] = compute(self)
        return self._found[key]

    def within(self, candidates: Int[Tensor, " u"], labeled: Int[Tensor, " l"], model: TaskModel) -> "Round":
        """Return a rehearsal: labelled pool indices `candidates` play the candidates, `labeled` the labelled set of `model`."""
        return self._get("within")(candidates, labeled, model)

    def has(self, name: str) -> bool:
        """Whether `name` is given or can be derived, without computing it."""
        if name in self._values or name in self._providers:
            return True
        return any(all(self.has(source) for source in sources) for sources, _ in _RULES.get(name, ()))

    def blocks(self, *names: str, size: int | None = None) -> Iterator["Round"]:
        """Cut the candidates into blocks: rounds over a slice of them, that hold at most one slice of `names` at a time.

        What the parent has already computed is sliced, and so is what is kept for others; what would be too large for that is
        computed for the block alone. Stochastic outputs come from the same T draws in every block.

        Args:
            names: what will be read per candidate; decides the block size.
            size: candidates per block (default: as many as keep a block in cache-friendly memory).
        """
        if size is None:
            width = max(1, self.num_classes) * (self.num_draws if "mc_probs" in names else 1)
            width = max(width, self._width("embeddings") if self._repeats("embeddings") else 0)
            size = max(1, BLOCK_ELEMENTS // width)
        if 0 < len(self) <= size and "inputs" not in names:  # inputs are let go with their block
            yield self
            return
        for start in range(0, len(self), size):
            yield _Block(self, slice(start, min(start + size, len(self))))

    def subset(self, positions: Int[Tensor, " u"]) -> "Round":
        """Return the round of some of the candidates, in the order of `positions`, for a strategy to choose among.

        What the whole round holds is shared, the pass over the pool included; rows are copied when something asks for them.
        """
        return _Block(self, positions)

    def _width(self, name: str) -> int:
        """Return how many numbers a candidate has in `name`."""
        if name == "embeddings":
            return self._values["head"][0].shape[1] if "head" in self._values else 0
        return self.num_classes * (self.num_draws if name == "mc_probs" else 1)

    def _repeats(self, name: str) -> bool:
        """Whether `name` is computed for each block anew rather than kept for all: it is large, and quickly computed."""
        if name in self._values or (name in ("logits", "embeddings") and "outputs" in self._values):
            return False
        if name == "inputs":
            return True
        return len(self) * self._width(name) > KEPT_ELEMENTS and (self._light or name in ("probs", "mc_probs", "top_two"))

    def _stored(self, pool_inputs: Inputs) -> Inputs:
        return self._values["inputs"] if "inputs" in self._values else gathered(pool_inputs, self.candidates)

    def _pass_logits(self) -> Tensor:
        if not self._repeats("embeddings"):
            return self._get("outputs").logits
        return torch.cat([block._get("outputs").logits for block in self.blocks("embeddings")])

    def _get(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._derive(name)
        return self._values[name]

    def _derive(self, name: str) -> Any:
        """Compute what is not known yet, and see that it is made of numbers: parts of it need no second look."""
        if name in self._providers:
            value = self._providers[name](self)
        else:
            ways = [way for way in _RULES.get(name, ()) if all(self.has(source) for source in way[0])]
            if not ways:
                raise MissingOutputError(missing(name, f"{name}=..."))
            sources, rule = ways[0]
            value = rule(*(self._get(source) for source in sources))
        if name in MUST_BE_NUMBERS:
            _require_numbers(name, value)
        return value


class _Block(Round):
    """Some of a round's candidates: a slice, or the positions that are listed."""

    def __init__(self, parent: Round, rows: slice | Tensor) -> None:
        super().__init__(
            candidates=parent.candidates[rows], labels=None, num_classes=parent.num_classes, streams=parent._streams,
            index=parent.index, num_draws=parent.num_draws, last=parent.last, providers=parent._providers,
            light=parent._light and isinstance(rows, Tensor),
        )  # fmt: skip
        self._parent, self._rows = parent, rows

    def has(self, name: str) -> bool:
        return self._parent.has(name)

    def features(self, name: str) -> Features:
        if name not in self._features:
            self._features[name] = self._parent.features(name).rows(self._rows)
        return self._features[name]

    def _derive(self, name: str) -> Any:
        if name == "aux":
            return _Outputs({key: value[self._rows] for key, value in self._parent.aux.items()})
        if name == "outputs" or (name in PER_CANDIDATE and self._parent._repeats(name)):
            return super()._derive(name)
        if name not in PER_CANDIDATE:
            return self._parent._get(name)
        whole = self._parent._get(name)
        return whole[:, self._rows] if PER_CANDIDATE[name] == 1 else whole[self._rows]


def _certainty(round: Round) -> Certainty:
    narrow = round.num_classes < NARROW and round.has("logits")
    found = [
        narrow_beliefs(_columns(block.logits)) if narrow else wide_beliefs(block.probs, block.top_two)
        for block in round.blocks("probs")
    ]
    if not found:
        return Certainty()
    return Beliefs(torch.cat(found, 2)).certainties(round.num_classes)[0]


def _columns(logits: Float[Tensor, "n C"]) -> Float[Tensor, "1 C n"]:
    """Return finite logits class by class: what is -inf has probability 0 anyway, and 0 log 0 is 0."""
    full = logits if logits.dtype == torch.float64 else logits.float()
    return full.T.clamp(min=torch.finfo(full.dtype).min / 4).contiguous().unsqueeze(0)


def _draw_probs(embeddings: Tensor, heads: tuple[Tensor, Tensor]) -> Tensor:
    logits = apply_heads(embeddings, heads)
    return softmax(logits.flatten(0, 1)).view(logits.shape)


# name -> ways to derive it: what it takes, and how
_RULES: dict[str, Sequence[tuple[tuple[str, ...], Callable[..., Any]]]] = {
    "probs": [(("logits",), softmax)],
    "top_two": [(("probs",), top_two)],
    "logits": [
        (("embeddings", "head"), lambda h, head: h @ head[0].T + head[1]),
        (("given_probs",), lambda probs: probs.log()),
    ],
    "mc_probs": [(("embeddings", "heads"), _draw_probs)],
}


def _require_numbers(name: str, values: Tensor) -> None:
    if not bool(values.sum().isnan()):
        return
    bad = values.isnan().any(-1)
    bad = bad.any(0) if bad.dim() == 2 else bad  # (U,), also of (T, U, C)
    if bool(bad.any()):
        raise ValueError(
            f"{name} of {int(bad.sum())} of {len(bad)} candidates are NaN; "
            "training diverged: lower trainer.lr or look at the inputs"
        )
