"""The transformers library, offline first: folders of models, safetensors weights, no code that comes with a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def model_folder(path: str | None, download: bool = False) -> Path:
    """Return the folder of a model.

    Args:
        path: the folder, or a name on the hub that is in the local cache.
        download: ask the hub for what is not there.

    Raises:
        ValueError: it is not on this machine.
    """
    if not path:
        raise ValueError("expected path=<folder of a transformers model, or its name on the hub>, got none")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(path, local_files_only=not download, allow_patterns=wanted))
    except Exception as error:  # the hub's errors are many: no such name, no network, not in the cache
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "check name and network" if download else "give its folder, or set download=true to fetch it once"
        raise ValueError(f"no model '{path}' on this machine ({first}); {remedy}") from error


def from_files(kind: str, folder: Path, **options: Any) -> Any:
    """Return `transformers.<kind>` (such as AutoModel) from a folder: safetensors weights only, float32, no remote code."""
    import transformers

    try:
        with quiet():
            return getattr(transformers, kind).from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype="float32", **options
            )
    except (OSError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{folder} holds no model that {kind} can read ({first}); it needs config.json and model.safetensors "
            "(weights in pickles are not loaded; convert them)"
        ) from error


def tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder} holds no tokenizer ({first}); copy tokenizer.json beside the weights") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers says while it loads: that a new head has new weights is no news here."""
    from transformers.utils import logging

    say: Any = logging
    before, shown = say.get_verbosity(), say.is_progress_bar_enabled()
    say.set_verbosity_error()
    say.disable_progress_bar()
    try:
        yield
    finally:
        say.set_verbosity(before)
        if shown:
            say.enable_progress_bar()
