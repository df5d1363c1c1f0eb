"""`python -m alenv.doctor`: what is installed, what is missing, and the command that mends it."""

import importlib
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

REQUIRED = (
    "torch", "torchvision", "gymnasium", "stable-baselines3", "hydra-core", "omegaconf", "numpy", "tensorboard", "transformers",
    "scikit-learn", "scipy", "safetensors", "pandas", "pyarrow", "matplotlib", "rich", "pillow", "pyyaml", "jaxtyping",
)  # fmt: skip
EXTRAS = {
    "test": (
        "beartype", "build", "hypothesis", "ipykernel", "mypy", "nbclient", "nbformat", "pandas-stubs", "pytest", "pytest-xdist",
        "ruff", "setuptools", "torchmetrics", "types-pyyaml",
    ),
    "rl": ("sb3-contrib",),
    "hf": ("datasets",),
    "medical": ("medmnist",),
    "bench": ("faiss-cpu", "scikit-activeml"),
    "scale": ("ray", "submitit"),
    "dev": (),
}  # fmt: skip
PYTHONS = ((3, 11), (3, 14))


class Finding(NamedTuple):
    """One line of the report: whether it is well, what it is about, what is there, and the command that mends it."""

    well: bool | None  # None: fine without
    about: str
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Return all findings; nothing is changed and nothing is downloaded."""
    checks: tuple[Callable[[], list[Finding]], ...] = (_python, _packages, _torch, _environment, _data, _folder)
    return [finding for check in checks for finding in check()]


def main() -> None:
    """Print the report; exit with 1 if something required is missing."""
    findings = examine()
    width = max(len(f.about) for f in findings)
    for finding in findings:
        mark = {True: "ok     ", False: "MISSING", None: "-      "}[finding.well]
        remedy = f"\n{'':<{width + 10}}-> {finding.remedy}" if finding.remedy else ""
        sys.stdout.write(f"{mark} {finding.about:<{width}}  {finding.found}{remedy}\n")
    broken = [f for f in findings if f.well is False]
    sys.stdout.write(f"\n{len(broken)} problems\n" if broken else "\nall is well: python -m alenv.train\n")
    sys.exit(1 if broken else 0)


def _python() -> list[Finding]:
    fits = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    return [Finding(fits, "python", platform.python_version(), "" if fits else "use Python 3.11, 3.12 or 3.13")]


def _packages() -> list[Finding]:
    found = []
    for name in REQUIRED:
        version = _version(name)
        found.append(Finding(version is not None, name, version or "not installed", "" if version else f"pip install {name}"))
    for extra, names in EXTRAS.items():
        missing = [name for name in names if _version(name) is None]
        remedy = f'pip install "alenv[{extra}]"' if missing else ""
        found.append(
            Finding(
                None if missing else True, f"extra {extra}", f"without {', '.join(missing)}" if missing else "complete", remedy
            )
        )
    return found


def _torch() -> list[Finding]:
    try:
        import torch

        from alenv.device import has_native_bfloat16, pick_device
        from alenv.vision import torchvision_module
    except (ImportError, OSError) as error:  # OSError: a shared library of torch is missing
        return [Finding(False, "device", f"torch does not import: {error}", "install what is missing above, then run this again")]
    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    precision = "bfloat16 for convolutions" if has_native_bfloat16(device) else "float32"
    findings = [Finding(True, "device", f"{device} ({name}), {precision}")]
    try:
        torchvision_module("datasets")
        findings.append(Finding(True, "torch + torchvision", "a matching pair"))
    except ImportError:
        findings.append(Finding(False, "torch + torchvision", "do not match", "pip install --force-reinstall torch torchvision"))
    return findings


def _environment() -> list[Finding]:
    try:
        import gymnasium

        importlib.import_module("alenv")
        ids = sorted(name for name in gymnasium.registry if name.startswith("alenv/"))
        from alenv import library

        things = ", ".join(
            f"{len(library.names(group))} {plural}" for group, plural in (("strategy", "strategies"), ("selector", "selectors"))
        )
        return [Finding(bool(ids), "environments", ", ".join(ids)), Finding(True, "library", things)]
    except ImportError as error:
        return [Finding(False, "environments", str(error), "pip install alenv")]


def _data() -> list[Finding]:
    folder = Path("/usr/share/datasets/fashion-mnist")
    there = folder.is_dir()
    remedy = "" if there else "apt install dataset-fashion-mnist, or dataset.download=true"
    fashion = Finding(True if there else None, "data: Fashion-MNIST", f"dataset.root={folder}" if there else "not found", remedy)
    return [Finding(True, "data: digits", "bundled"), fashion]


def _folder() -> list[Finding]:
    runs = Path("runs").absolute()
    here = runs if runs.exists() else runs.parent
    try:
        probe = here / ".alenv-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return [Finding(False, "run directories", f"{here}: {error.strerror}", "hydra.run.dir=<a folder you may write>")]
    return [Finding(True, "run directories", f"{runs}{_size(here)}")]


def _size(folder: Path) -> str:
    import shutil

    return f", {shutil.disk_usage(folder).free / 2**30:.0f} GiB free"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
