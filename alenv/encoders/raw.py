"""The inputs themselves."""

from jaxtyping import Float
from torch import Tensor

from alenv.encoder import Encoder, Unlabeled


class Raw(Encoder):
    """Normalised inputs, flattened."""

    costly = False

    def encode(self, pool: Unlabeled) -> Float[Tensor, "N F"]:
        """Return (x - mean) / std of every input as one row."""
        return ((pool.inputs[:].float() - pool.mean) / pool.std).flatten(1)
