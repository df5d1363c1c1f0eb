"""alenv: choosing among active-learning query strategies, as a Gymnasium environment.

Importing it registers `alenv/Pick-v0`, `alenv/Mix-v0` and `alenv/SampleMix-v0`; it does not import torch.
"""

from pathlib import Path

import gymnasium

from alenv.version import VERSION as __version__

if Path(__file__).resolve().parent.parent.joinpath("pyproject.toml").is_file():
    __path__.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout: selectors/, strategies/, configs/ stand beside us

for _name, _action in {"Pick": "pick", "Mix": "mix", "SampleMix": "sample_mix"}.items():
    gymnasium.register(f"alenv/{_name}-v0", entry_point="alenv.env:ActiveLearningEnv", kwargs={"action": _action})

__all__ = ["__version__"]
