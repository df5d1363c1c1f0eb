"""Pools larger than memory: what is read is read in blocks, and nothing else differs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alenv.checks import check_strategy
from alenv.datasets.arrays import arrays
from alenv.gathered import Gathered, gathered, shared
from alenv.inference import Outputs
from alenv.nets.linear import linear
from alenv.nets.mlp import mlp
from alenv.observation import observe
from alenv.pool import Pool
from alenv.round import Round
from alenv.runner import Runner
from alenv.settings.standard import standard
from alenv.strategies.base import BASE
from alenv.strategies.coreset import Coreset
from alenv.strategies.entropy import Entropy
from alenv.strategies.margin import Margin
from alenv.strategies.mase import MASE
from alenv.streams import Streams
from alenv.task import Task
from alenv.trainer import Trainer

STRATEGIES = [Entropy(), Margin(), MASE(), BASE(), Coreset()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    targets = np.arange(300) % 4
    rows = (draw.normal(size=(300, 6)) + 2 * np.eye(4, 6)[targets]).astype(np.float16)
    np.save(tmp_path / "train_inputs.npy", rows)
    np.save(tmp_path / "train_targets.npy", targets)
    np.save(tmp_path / "test_inputs.npy", rows[:50])
    np.save(tmp_path / "test_targets.npy", targets[:50])
    return tmp_path


def everything_is_large(patch: pytest.MonkeyPatch) -> None:
    """Nothing is copied, no output is kept, and blocks are of a few candidates."""
    patch.setattr("alenv.gathered.COPIED_BYTES", 0)
    patch.setattr("alenv.round.KEPT_ELEMENTS", 0)
    patch.setattr("alenv.round.BLOCK_ELEMENTS", 6 * 16)


class Counted:
    """Runs a model and notes over how many inputs."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, model, inputs) -> Outputs:
        self.rows.append(len(inputs))
        return Trainer(device="cpu").outputs(model, inputs)


def a_round(inputs, net=linear, outputs=None) -> Round:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = net((6,), 4).eval().requires_grad_(False)
    pool = Pool(len(inputs), 4)
    pool.reveal(torch.arange(0, 40, 5), [0, 1, 2, 3] * 2)
    return Round.of_model(model, inputs, pool, outputs or Counted(), Streams(0))


def test_gathered_rows_are_what_a_copy_would_hold() -> None:
    source = torch.arange(40.0).view(10, 2, 2)
    rows = torch.tensor([7, 1, 1, 9])
    some, copied = Gathered(source, rows), source[rows]
    assert (len(some), some.shape, some.dim(), some.numel(), some.dtype) == (4, copied.shape, 3, 16, torch.float32)
    assert torch.equal(some[:], copied)
    assert torch.equal(some[1:3], copied[1:3])
    assert torch.equal(some[torch.tensor([3, 0])], copied[[3, 0]])
    assert torch.equal(some[[3, 0]], copied[[3, 0]])
    assert torch.equal(some[2], copied[2])
    assert torch.equal(some[torch.tensor([True, False, True, False])], copied[[0, 2]])
    assert all(torch.equal(a, b) for a, b in zip(some.split(3), copied.split(3), strict=True))
    assert torch.equal(Gathered(some, torch.tensor([2, 0]))[:], copied[[2, 0]])


def test_few_rows_are_copied_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = torch.arange(20).view(10, 2), torch.tensor([3, 5])
    assert isinstance(gathered(source, rows), torch.Tensor)
    monkeypatch.setattr("alenv.gathered.COPIED_BYTES", 2 * 2 * 8 - 1)
    many = gathered(source, rows)
    assert isinstance(many, Gathered)
    assert torch.equal(many[:], source[rows])


def test_only_what_fits_moves_to_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = torch.arange(20).view(10, 2), torch.tensor([0, 2, 3, 5, 7, 8, 9])
    moved = shared(source, rows, "meta")
    assert isinstance(moved, torch.Tensor)
    assert moved.device.type == "meta"
    monkeypatch.setattr("alenv.gathered.RESIDENT_BYTES", 100)
    stays = shared(source, rows, "meta")
    assert isinstance(stays, Gathered)
    assert stays[:3].device.type == "meta"


def test_campaigns_on_one_data_set_share_its_inputs(folder: Path) -> None:
    source, rows = arrays(str(folder)), torch.tensor([0, 2, 3])
    assert shared(source.train.inputs, rows, "cpu").source is source.train.inputs
    run = shared(source.train.inputs, torch.arange(3, 9), "cpu")
    assert run.data_ptr() == source.train.inputs[3:].data_ptr()
    both = [Task.build(source, standard(source, 30, Streams(seed))) for seed in (0, 1)]
    assert {task.inputs.source.data_ptr() for task in both} == {source.train.inputs.data_ptr()}
    assert not torch.equal(both[0].inputs[:], both[1].inputs[:])


def test_half_precision_stays_as_it_is_stored_and_nothing_is_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = arrays(str(folder))
    assert source.train.inputs.dtype == torch.float16
    plain = Task.build(source, standard(source, 30, Streams(0)))
    everything_is_large(monkeypatch)
    task = Task.build(source, standard(source, 30, Streams(0)))
    assert isinstance(task.inputs, Gathered)
    assert task.inputs.source.data_ptr() == source.train.inputs.data_ptr()
    assert torch.equal(task.inputs[:], plain.inputs[:])
    assert task.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("net", [linear, mlp])
def test_picks_do_not_depend_on_what_is_kept(strategy, net, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(90, 6, generator=Streams(0)("inputs"))
    expected = strategy.select(a_round(inputs, net), 12)
    everything_is_large(monkeypatch)
    large = a_round(Gathered(inputs, torch.arange(90)), net)
    assert strategy.select(large, 12).tolist() == expected.tolist()
    assert strategy.select(large.subset(torch.arange(40)), 5).shape == (5,)


def test_a_head_is_run_again_and_a_net_once(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_large(monkeypatch)
    inputs = torch.randn(90, 6, generator=Streams(0)("inputs"))
    for net, passes in ((linear, 82 * 2), (mlp, 82)):
        outputs = Counted()
        round = a_round(Gathered(inputs, torch.arange(90)), net, outputs)
        Entropy().select(round, 5)
        Margin().select(round, 5)
        assert sum(outputs.rows) == passes
        assert max(outputs.rows) <= (16 if net is linear else 82)
        assert "probs" not in round._values


def test_logits_are_kept_where_only_embeddings_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alenv.round.KEPT_ELEMENTS", 82 * 4)
    monkeypatch.setattr("alenv.round.BLOCK_ELEMENTS", 6 * 16)
    inputs, outputs = torch.randn(90, 6, generator=Streams(0)("inputs")), Counted()
    round = a_round(inputs, outputs=outputs)
    Entropy().select(round, 5)
    Margin().select(round, 5)
    assert outputs.rows == [16] * 5 + [2]
    assert "embeddings" not in round._values
    torch.testing.assert_close(round.logits, a_round(inputs).logits)


def test_arrays_of_somebody_else_are_cut_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = torch.rand(50, 3, generator=Streams(0)("p")).softmax(1)
    expected = [strategy.select(Round.from_arrays(probs=probs), 7) for strategy in (Entropy(), Margin())]
    logits = Round.from_arrays(probs=probs).logits
    everything_is_large(monkeypatch)
    round = Round.from_arrays(probs=probs)
    assert all(torch.equal(s.select(round, 7), e) for s, e in zip((Entropy(), Margin()), expected, strict=True))
    assert torch.equal(torch.cat([block.logits for block in Round.from_arrays(probs=probs).blocks("logits", size=8)]), logits)


def test_the_contract_holds_for_large_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_large(monkeypatch)
    for strategy in STRATEGIES:
        check_strategy(strategy)


def test_a_run_is_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "dataset": {"name": "arrays", "root": str(folder)}, "selector": {"name": "uniform_mixture"}, "validation": 30,
        "strategies": ["entropy", "base", "typiclust"], "budget": {"initial": 12, "batch": 8, "rounds": 2}, "device": "cpu",
    }  # fmt: skip
    plain = Runner.of(config).run()
    everything_is_large(monkeypatch)
    large = Runner.of(config).run()
    assert [r.queried for r in large.rounds] == [r.queried for r in plain.rounds]
    assert [r.metrics for r in large.rounds] == [r.metrics for r in plain.rounds]


def test_observations_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "dataset": {"name": "arrays", "root": str(folder)}, "selector": "uniform_mixture", "strategies": ["entropy", "margin"],
        "budget": {"initial": 12, "batch": 8, "rounds": 1}, "device": "cpu",
    }  # fmt: skip

    def seen() -> np.ndarray:
        runner = Runner.of(config)
        runner.env.reset(seed=0)
        return observe([runner.env.campaign], 4)["campaign"]

    plain = seen()
    everything_is_large(monkeypatch)
    np.testing.assert_allclose(seen(), plain, atol=1e-6)


ONE_TENTH = """
import sys, torch
from pathlib import Path
from alenv.datasets.arrays import arrays
from alenv.nets.linear import linear
from alenv.pool import Pool
from alenv.round import Round
from alenv.settings.standard import standard
from alenv.strategies.base import BASE
from alenv.strategies.entropy import Entropy
from alenv.strategies.margin import Margin
from alenv.streams import Streams
from alenv.task import Task
from alenv.trainer import Trainer

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

before = peak()
source = arrays(sys.argv[1])
task = Task.build(source, standard(source, 100, Streams(0)))
torch.manual_seed(0)
model = linear((2048,), 1000, task.mean, task.std).eval().requires_grad_(False)
pool = Pool(len(task), 1000)
pool.reveal(torch.arange(1000), task.targets[:1000].tolist())
now = Round.of_model(model, task.inputs, pool, Trainer(device="cpu").outputs, Streams(0))
for strategy in (Entropy(), Margin(), BASE()):
    assert len(strategy.select(now, 1000)) == 1000
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
def test_memory_grows_by_what_is_read_of_the_file_and_by_little_else(tmp_path: Path) -> None:
    """A tenth of ImageNet, 128,000 x 2,048 halves with 1,000 classes: 0.5 GB of file; kept whole, outputs would take 3 more."""

    def peak(size: int) -> int:
        folder = tmp_path / str(size)
        folder.mkdir()
        rows = np.lib.format.open_memmap(folder / "train_inputs.npy", mode="w+", dtype=np.float16, shape=(size, 2048))
        draw = np.random.default_rng(0)
        for start in range(0, size, 8000):
            rows[start : start + 8000] = draw.standard_normal((min(8000, size - start), 2048), dtype=np.float32)
        rows.flush()
        np.save(folder / "train_targets.npy", np.arange(size) % 1000)
        done = subprocess.run(
            [sys.executable, "-c", ONE_TENTH, str(folder)], capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout) * 1024

    small, large = peak(16_000), peak(128_000)
    assert large < 1.2e9  # beside torch and alenv
    assert large - small < 112_000 * 2048 * 2 + 1.5e8
