"""What is learned: a data set as read (`Source`), and the same under a setting (`Task`)."""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Num
from torch import Tensor

from alenv.gathered import Gathered, run_of, shared
from alenv.pool import OUTSIDE

METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece")  # see `alenv.metrics.classification`
OPEN_SET_METRICS = ("query_precision", "query_recall")  # see `alenv.metrics.purchase`
BLOCK_ELEMENTS = 2**22  # numbers read at once from inputs that may lie in a file


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What may be done to a training image without changing its class: shifts up to `pad` pixels, horizontal flips."""

    pad: int = 0
    flip: bool = False


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the numbers of a text's inputs mean: each is a token of one tokenizer.

    Attributes:
        tokenizer: folder or hub name of the transformers tokenizer.
        vocabulary: how many tokens it knows.
        pad: number of the token that fills up shorter texts; a model attends to `inputs != pad`.
    """

    tokenizer: str
    vocabulary: int
    pad: int


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs with their targets and stable ids.

    Attributes:
        inputs: (n, ...), as stored (for images uint8 is best: it stays small on the device). Floats may be of half precision:
            models compute in float32 whatever is stored.
        targets: (n,) int64 class numbers; -1 where no label is known.
        ids: n distinct strings that stay the same whatever the setting or seed.
        texts: n texts the inputs were made of, for people and encoders; None where inputs are all there is.
    """

    inputs: Num[Tensor, "n ..."]
    targets: Int[Tensor, " n"]
    ids: tuple[str, ...]
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def known(self) -> "Examples":
        """Those whose label is known."""
        known = self.targets >= 0
        return self if bool(known.all()) else self.take(torch.nonzero(known).flatten())

    def take(self, indices: Int[Tensor, " k"]) -> "Examples":
        """Return the examples at `indices`, in that order; of a run of neighbours the inputs are a view, not a copy."""
        rows = indices.cpu()
        listed = rows.tolist()
        texts = None if self.texts is None else tuple(self.texts[i] for i in listed)
        return Examples(self.inputs[run_of(rows)], self.targets[rows], tuple(self.ids[i] for i in listed), texts)

    def to(self, device: torch.device | str) -> "Examples":
        """Return the same examples with their tensors on `device`."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its reader returns it, before a setting makes a task of it.

    Attributes:
        name: short name.
        train: the examples that pool and validation split are drawn from.
        test: the test examples; None or empty if the set has none.
        classes: class names; target c means `classes[c]`.
        mean: subtracted from stored inputs before the first layer; broadcastable to one input.
        std: what they are divided by afterwards.
        augmentation: label-preserving changes the trainer may make; None for none.
        tokens: what the inputs of tokenised texts mean; None for everything else.
        folder: where the ids are names of files that a person can open; None if they are not.

    Raises:
        ValueError: inputs hold NaN or infinity, ids or class names repeat, targets leave 0..C-1 (or -1), fewer than two classes,
            or a class has no example though every label is known.
    """

    name: str
    train: Examples
    test: Examples | None
    classes: tuple[str, ...]
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    std: Tensor = field(default_factory=lambda: torch.ones(()))
    augmentation: Augmentation | None = None
    tokens: Tokens | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"{self.name}: expected at least two classes, got {list(self.classes)}; a classifier needs a choice")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"{self.name}: the class name '{twice}' occurs twice; every class needs a name of its own")
        for part, examples in (("train", self.train), ("test", self.test)):
            if examples is not None:
                self._check(part, examples)
        counts = torch.bincount(self.train.targets[self.train.targets >= 0], minlength=len(self.classes))
        if len(self.train) and (self.train.targets >= 0).all() and (counts == 0).any():
            missing = [self.classes[c] for c in torch.nonzero(counts == 0).flatten().tolist()]
            more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
            raise ValueError(
                f"{self.name}: no training example of class {', '.join(missing[:12])}{more}; "
                "remove the class name or add examples of it"
            )

    def _check(self, part: str, examples: Examples) -> None:
        if not len(examples.inputs) == len(examples.targets) == len(examples.ids):
            raise ValueError(
                f"{self.name} {part}: expected as many targets and ids as inputs ({len(examples.inputs)}), "
                f"got {len(examples.targets)} targets and {len(examples.ids)} ids"
            )
        if len(set(examples.ids)) != len(examples.ids):
            seen: set[str] = set()
            first = next(id_ for id_ in examples.ids if id_ in seen or seen.add(id_))  # type: ignore[func-returns-value]
            raise ValueError(f"{self.name} {part}: ids repeat (first '{first}'); every example needs an id of its own")
        if examples.inputs.is_floating_point():
            width = max(1, examples.inputs[:1].numel())
            bad = torch.cat([~torch.isfinite(block.reshape(len(block), width)).all(1) for block in blocks(examples.inputs)])
            if bad.any():
                where = [examples.ids[i] for i in torch.nonzero(bad).flatten()[:3].tolist()]
                raise ValueError(
                    f"{self.name} {part}: NaN or infinite values in {int(bad.sum())} inputs (ids {', '.join(where)}); "
                    "mend or drop them"
                )
        low, high = (int(examples.targets.min()), int(examples.targets.max())) if len(examples) else (0, 0)
        if low < -1 or high >= len(self.classes):
            raise ValueError(
                f"{self.name} {part}: expected targets in 0..{len(self.classes) - 1} (or -1 for unknown), got {low}..{high}"
            )


@dataclass(frozen=True, eq=False)
class Split:
    """The index lists a setting makes of a source: positions in its train and test examples.

    Attributes:
        classes: the classes of the task, ascending; pool examples of any other are of no class. None: all of them.
        facts: what the setting realised, for the records.
        groups: classes (numbers of the task) whose mean recall is recorded, by the metric's name.
        targets: (n,) what the training examples' targets are taken to be, where not the source's (label noise); or None.
    """

    pool: Int[Tensor, " N"]
    validation: Int[Tensor, " V"]
    test: Int[Tensor, " E"]
    classes: tuple[int, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    targets: Int[Tensor, " n"] | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A data set under a setting: a pure function of (source, setting, seed).

    Validation and test may be empty. Validation labels count as given (they are reported, not charged).

    Attributes:
        inputs: (N, ...) of the pool, on the device; large ones may stay where they are, and parts of them come to the device.
        targets: (N,) hidden targets; `pool.OUTSIDE` for examples of none of the classes. Only an `Oracle` may hold them:
            strategies and selectors never see a task.
        ids: N stable ids.
        texts: the N texts the inputs were made of, or None.
        tokens: what the inputs of tokenised texts mean, or None.
        validation: labelled examples for rewards and selectors.
        test: examples that nothing but the records looks at.
        kind: what targets are; "classes".
        metrics: names of what is recorded of every round.
        primary: the metric that summaries integrate and rewards improve.
        facts: what the setting realised (the rate of examples of no class, say).
        groups: classes whose mean recall on the test split is recorded, by the metric's name.
        split: what the source was cut along; None for a task that was not cut from one.
        folder: where the ids are names of files, or None.
    """

    name: str
    setting: str
    inputs: Num[Tensor, "N ..."] | Gathered
    targets: Int[Tensor, " N"]
    ids: tuple[str, ...]
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    augmentation: Augmentation | None = None
    kind: str = "classes"
    metrics: tuple[str, ...] = METRICS
    primary: str = "accuracy"
    facts: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[str] | None = None
    tokens: Tokens | None = None
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    split: Split | None = None
    folder: Path | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(cls, source: Source, split: Split, setting: str = "standard", device: torch.device | str = "cpu") -> "Task":
        """Cut `source` along `split` and put the parts on `device`."""
        if len(split.pool) == 0:
            raise ValueError(
                f"{source.name}: the {setting} setting left no example in the pool; lower validation= or bring more data"
            )
        kept = range(len(source.classes)) if split.classes is None else split.classes
        number = torch.full((len(source.classes),), OUTSIDE)
        number[list(kept)] = torch.arange(len(kept))

        def numbered(targets: Tensor) -> Tensor:
            return torch.where(targets >= 0, number[targets], targets)

        def part(examples: Examples, rows: Int[Tensor, " k"]) -> Examples:
            taken = examples.take(rows)
            return replace(taken, targets=numbered(taken.targets)).to(device)

        train = source.train if split.targets is None else replace(source.train, targets=split.targets)
        open_set = OPEN_SET_METRICS if "outside" in split.facts else ()
        pool = split.pool.cpu()
        inputs, texts = shared(train.inputs, pool, device), train.texts
        return cls(
            source.name, setting, inputs, numbered(train.targets[pool]).to(device), tuple(train.ids[i] for i in pool.tolist()),
            part(train, split.validation), part(source.test or source.train, split.test),
            tuple(source.classes[c] for c in kept), source.mean.to(device), source.std.to(device), source.augmentation,
            metrics=(*METRICS, *split.groups, *open_set), facts=split.facts, tokens=source.tokens,
            texts=None if texts is None else tuple(texts[i] for i in pool.tolist()), groups=split.groups, split=split,
            folder=source.folder,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Return a hash of every input, id and known target: equal tasks have equal fingerprints."""
        digest = hashlib.blake2b(digest_size=16)
        for inputs, targets, ids in (
            (self.inputs, self.targets, self.ids),
            (self.validation.inputs, self.validation.targets, self.validation.ids),
            (self.test.inputs, self.test.targets, self.test.ids),
        ):
            digest.update("\n".join(ids).encode())
            digest.update(targets.cpu().numpy().tobytes())
            for block in blocks(inputs):
                digest.update(block.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def blocks(inputs: Num[Tensor, "n ..."] | Gathered) -> Iterator[Tensor]:
    """Return `inputs` in pieces of at most `BLOCK_ELEMENTS` numbers, or of one input."""
    yield from inputs.split(max(1, BLOCK_ELEMENTS // max(1, inputs[:1].numel())))


def number_ids(count: int, prefix: str = "") -> tuple[str, ...]:
    """Return `count` ids of equal width: "0000", "0001", ..."""
    width = len(str(max(count - 1, 0)))
    return tuple(f"{prefix}{i:0{width}d}" for i in range(count))
