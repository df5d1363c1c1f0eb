"""What strategies may be given beside a model's outputs: features of providers, by who they belong to."""

import functools
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


class MissingOutputError(ValueError):
    """A strategy asked a round for something that was not given and cannot be derived."""


Part = Tensor | Callable[[], Tensor] | None


class Features:
    """Features of a provider (an encoder, say), by who they belong to; each part is computed when it is first asked for.

    Args:
        name: of the provider.
        candidates: (U, F), or (U, V, F) for V views of each; or what returns them.
        labeled: the same for the labelled examples; None if unknown.
        discarded: the same for what was bought and could not be used; None if unknown.
        last: the same for the previous purchase; None if there is none.
    """

    def __init__(self, name: str, candidates: Part, labeled: Part = None, discarded: Part = None, last: Part = None) -> None:
        self.name = name
        parts: dict[str, Part] = {"candidates": candidates, "labelled": labeled, "discarded": discarded, "last": last}
        self._parts = parts

    @property
    def candidates(self) -> Float[Tensor, "U F"]:
        """Features of the candidates; those of several views one after the other."""
        return self._part("candidates").flatten(1)

    @property
    def labeled(self) -> Float[Tensor, "L F"]:
        """Features of the labelled examples; raises `MissingOutputError` where they were not given."""
        return self._part("labelled").flatten(1)

    @property
    def discarded(self) -> Float[Tensor, "X F"]:
        """Features of what was bought and could not be used; raises `MissingOutputError` where they were not given."""
        return self._part("discarded").flatten(1)

    @property
    def last(self) -> Float[Tensor, "B F"]:
        """Features of the previous purchase, in its order."""
        return self._part("last").flatten(1)

    @property
    def views(self) -> int:
        """V, how many views of each example there are."""
        whole = self._part("candidates")
        return whole.shape[1] if whole.dim() == 3 else 1

    def rows(self, rows: slice | Tensor) -> "Features":
        """Return the same with some of the candidates."""
        others = [functools.partial(self._part, name) for name in ("labelled", "discarded", "last")]
        return Features(self.name, lambda: self._part("candidates")[rows], *others)

    def _part(self, name: str) -> Tensor:
        part = self._parts[name]
        if part is None:
            what = f"features '{self.name}' of the {name} examples"
            raise MissingOutputError(missing(what, f"features={{'{self.name}': (candidates, labelled, discarded)}}"))
        if not isinstance(part, Tensor):
            part = self._parts[name] = part()
        return part


def missing(what: str, remedy: str) -> str:
    """Return a sentence: what a round was not given, and what mends it."""
    return (
        f"this round has no {what}: it was not given and cannot be derived; "
        f"pass {remedy} to Round.from_arrays, or use a task that offers it"
    )
