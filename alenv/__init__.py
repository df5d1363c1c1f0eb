"""alenv: choosing among active-learning query strategies, as a Gymnasium environment.

Importing it registers `alenv/Pick-v0`, `Mix-v0`, `SampleMix-v0` and `SampleDraw-v0`; it does not import torch.
"""

from pathlib import Path

import gymnasium

from alenv.version import VERSION as __version__

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "configs" / "train.yaml").is_file():
    __path__.insert(0, str(_root))  # a checkout: selectors/, strategies/ and configs/ stand beside this folder, not in it

for _name, _action in {"Pick": "pick", "Mix": "mix", "SampleMix": "sample_mix", "SampleDraw": "sample_draw"}.items():
    gymnasium.register(
        f"alenv/{_name}-v0", entry_point="alenv.env:ActiveLearningEnv", kwargs={"action": _action},
        vector_entry_point=None if _action.startswith("sample") else "alenv.vector_env:ActiveLearningVectorEnv",
    )  # fmt: skip

__all__ = ["__version__"]
