"""`cache=` moves files, not results: it is written down, decides nothing, and what is cached can be shared."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from alenv.datasets.store import kept
from alenv.durable import beside
from alenv.embedding import Given, Shown, embed
from alenv.encoder import _keep
from alenv.rundir import RunDirectory, config_hash
from alenv.runner import Runner, load_run


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.skipif(os.name == "nt", reason="rights of files are another matter on Windows")
def test_cached_files_have_the_rights_of_any_new_file(mask: int, tmp_path: Path) -> None:
    shown = Shown(torch.ones(3, 2), None, torch.zeros(()), torch.ones(()))
    embed(Given(double), shown, torch.device("cpu"), tmp_path)
    _keep(tmp_path, "features", torch.ones(3))
    kept("array", lambda allocate: allocate((2, 2), "uint8").fill(1), str(tmp_path / "arrays"))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4  # embeddings have a card beside them
    assert modes(tmp_path) == {0o666 & ~mask}


def test_files_on_their_way_have_names_of_their_own(tmp_path: Path) -> None:
    made = {beside(tmp_path / "x.npy") for _ in range(20)}
    assert len(made) == 20
    assert all(path.parent == tmp_path and path.name.startswith(".x.") for path in made)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match="features are not kept.*No space left"):
        _keep(tmp_path, "features", torch.ones(3))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_folder_of_the_cache_is_written_down_and_changes_no_name(tmp_path: Path) -> None:
    rows = {"name": "table", "path": "rows.csv"}
    configs = [
        {"seed": 1, "dataset": rows},
        {"seed": 1, "dataset": rows, "cache": "/one"},
        {"seed": 1, "dataset": {**rows, "cache": "/two"}, "cache": None},
    ]
    assert len({config_hash(config) for config in configs}) == 1
    assert config_hash(configs[0]) != config_hash({"seed": 1, "dataset": {**rows, "path": "others.csv"}})
    for config in configs[1:]:
        RunDirectory(tmp_path, config).prepare()  # none is refused as another configuration
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == configs[1]


def test_a_run_read_back_finds_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALENV_CACHE", str(tmp_path / "default"))
    np.save(tmp_path / "train_inputs.npy", np.arange(120, dtype=np.float32).reshape(40, 3) % 7)
    np.save(tmp_path / "train_targets.npy", np.arange(40) % 2)
    config = {
        "dataset": {"name": "arrays", "root": str(tmp_path)}, "selector": "random_pick", "strategies": ["uniform"],
        "device": "cpu", "budget": {"initial": 4, "batch": 2, "rounds": 1}, "embed": "doubling:Doubling",
        "cache": str(tmp_path / "mine"),
    }  # fmt: skip
    module = ModuleType("doubling")
    module.Doubling = lambda: Given(double)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "doubling", module)
    first = Runner.of(config, tmp_path / "run").run()
    assert load_run(tmp_path / "run").summary == first.summary
    assert list((tmp_path / "mine" / "embeddings").glob("*.npy"))
    assert not (tmp_path / "default").exists()
