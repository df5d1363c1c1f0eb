"""torchvision, imported only when something needs it."""

import importlib
from typing import Any

import torch


def torchvision_module(name: str) -> Any:
    """Return `torchvision.<name>`.

    Raises:
        ImportError: torchvision is missing or was built for another torch; the message says what to install.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    # a mismatched pair fails with "operator torchvision::nms does not exist"
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ImportError(
            f"torchvision does not work with torch {torch.__version__} ({error}); install the matching pair: "
            "pip install --force-reinstall torch torchvision"
        ) from error
