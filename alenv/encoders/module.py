"""Your own module or function as a frozen encoder, by import path."""

from collections.abc import Callable, Mapping
from typing import Any

from alenv import library
from alenv.embedding import Given, Reads
from alenv.streams import Streams


class Module(Given):
    """What "package.module:Name" maps a batch to: a class is built first (a torch module, say), a function is called as it is.

    Args:
        target: the class or function.
        arguments: what a class is built with.
        reads: what it is called with: "inputs" (normalised as the data set says), "images" (RGB, resized, normalised as
            ImageNet's) or "texts" (a list of strings).
        side: of images, in pixels.
        batch_size: examples per call.
        version: change it when the code behind `target` changes: cached features are told apart by it and by a module's weights.
    """

    def __init__(
        self, target: str | None = None, arguments: Mapping[str, Any] | None = None, reads: Reads = "inputs", side: int = 224,
        batch_size: int = 64, version: str = "",
    ) -> None:  # fmt: skip
        super().__init__(None, reads, side, batch_size)
        self.target, self.arguments, self.version = target, dict(arguments or {}), version

    def function(self) -> Callable[[Any], Any]:
        """Return the function, or what the class builds."""
        if self._function is None:
            if self.target is None:
                raise ValueError("encoder module: expected target=<module>:<class or function>, got none")
            found = library.resolve(self.target)
            with Streams(0).scoped("encoder/module"):
                self._function = found(**self.arguments) if isinstance(found, type) else found
        return self._function
