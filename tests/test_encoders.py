"""Encoders: what each computes, that they learn, and how features reach strategies, memory and disk."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from alenv import encoder as encoder_module
from alenv import library
from alenv.campaign import Plan
from alenv.encoder import Encoder, Providers, Unlabeled, default_folder
from alenv.encoders.array import Array
from alenv.encoders.csi import CSI
from alenv.encoders.raw import Raw
from alenv.encoders.simclr import SimCLR, corrupted, image_view, nt_xent
from alenv.model import TaskModel
from alenv.nets.mlp import mlp
from alenv.nets.small_cnn import small_cnn
from alenv.problem import assemble
from alenv.round import Round
from alenv.streams import Streams
from alenv.task import Augmentation
from alenv.trainer import Trainer

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "projection": 6}


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=Streams(0)(name))


def a_pool(inputs: Tensor | None = None, seed: int = 0, net: Any = None) -> Unlabeled:
    inputs = draw(40, 5) if inputs is None else inputs
    shape = tuple(inputs.shape[1:])

    def family() -> TaskModel:
        made = small_cnn(shape, 2, widths=(4, 8)) if inputs.dim() == 4 else mlp(shape, 2, width=16, depth=1)
        return net() if net else made

    return Unlabeled(
        inputs, torch.arange(len(inputs)), len(inputs), torch.tensor(0.5), torch.tensor(2.0), Augmentation(flip=True), family,
        Trainer("cpu"), Streams(seed),
    )  # fmt: skip


class Counting(Encoder):
    """Says how often it was asked to encode."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    calls = 0

    def encode(self, pool: Unlabeled) -> Tensor:
        type(self).calls += 1
        return self.factor * pool.inputs.flatten(1)


@pytest.fixture(autouse=True)
def _uncounted() -> None:
    Counting.calls = 0


# What they compute


def test_raw_features_are_the_normalised_inputs_in_a_row() -> None:
    x = draw(6, 1, 2, 3)
    torch.testing.assert_close(Raw().encode(a_pool(x)), ((x - 0.5) / 2).flatten(1))


def test_nt_xent_is_the_loss_of_the_paper_by_plain_loops() -> None:
    z, temperature = draw(8, 3).double(), 0.5
    unit = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
    total = 0.0
    for i in range(8):
        twin = (i + 4) % 8
        others = sum(np.exp(unit[i] @ unit[j] / temperature) for j in range(8) if j != i)
        total -= np.log(np.exp(unit[i] @ unit[twin] / temperature) / others)
    assert float(nt_xent(z, temperature)) == pytest.approx(total / 8)


def test_corruption_takes_the_same_entry_of_other_rows_at_the_rate_asked_for() -> None:
    x = torch.arange(4000.0).view(400, 10)
    y = corrupted(x, Streams(0)("c"), 0.6)
    assert torch.equal(y % 10, x % 10), "entries stay in their column"
    assert float((y != x).float().mean()) == pytest.approx(0.6, abs=0.02)
    assert torch.equal(corrupted(x, Streams(0)("c"), 0.0), x)
    tokens = torch.randint(0, 9, (20, 7), generator=Streams(0)("t"))
    assert corrupted(tokens, Streams(0)("c"), 0.5).dtype == tokens.dtype


@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_an_image_differ_and_keep_its_shape(channels: int) -> None:
    x = draw(10, channels, 8, 8)
    first, second = (image_view(x, Streams(seed)("v"), 0.2, True) for seed in (0, 1))
    assert first.shape == x.shape
    assert bool(torch.isfinite(first).all())
    assert not torch.equal(first, second)


def test_a_crop_of_everything_without_a_flip_changes_colours_alone() -> None:
    x = draw(5, 1, 8, 8)
    y = image_view(x, Streams(0)("v"), 1.0, False)
    one, other = x.flatten(1), y.flatten(1)
    for a, b in zip(one, other, strict=True):  # affine in each image; aspect ratios may still cut a little
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) > 0.5


@pytest.mark.parametrize(
    ("inputs", "views"),
    [(draw(20, 5), 4), (draw(20, 1, 8, 8), 4), (draw(20, 3, 8, 6), 4)],
    ids=["table", "square images", "oblong images"],
)
@pytest.mark.parametrize("layer", ["projection", "body"])
def test_contrastive_features_have_their_shape_and_repeat_bit_by_bit(inputs: Tensor, views: int, layer: Any) -> None:
    pool = a_pool(inputs)
    width = 6 if layer == "projection" else {2: 16, 4: 8}[inputs.dim()]
    plain, shifted = SimCLR(**QUICK, layer=layer), CSI(**QUICK, layer=layer)
    assert plain.encode(pool).shape == (20, width)
    features = shifted.encode(pool)
    assert features.shape == (20, views, width)
    assert torch.equal(features, shifted.encode(a_pool(inputs)))
    assert not torch.equal(features, shifted.encode(a_pool(inputs, seed=1)))
    assert not features.requires_grad


def test_each_of_csis_shifts_makes_other_inputs_and_the_first_is_the_identity() -> None:
    for x in (draw(3, 1, 4, 4), draw(3, 2, 4, 6), draw(3, 7)):
        results = [shift(x) for shift in CSI().shifts(a_pool(x))]
        assert torch.equal(results[0], x)
        assert all(r.shape == x.shape for r in results)
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(results, 2))


def test_rows_are_those_of_their_example_whatever_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = a_pool()
    whole = CSI(**QUICK).encode(pool)
    pool.trainer.inference_batch = 12
    torch.testing.assert_close(CSI(**QUICK).encode(pool), whole)


def test_training_brings_views_of_one_example_together_and_tells_shifts_apart() -> None:
    """Six prototypes with noise: after training a row's nearest neighbour is of its prototype more often than before."""
    kind = torch.arange(120) % 6
    noise = 2.0 * draw(120, 40, name="n")
    x = torch.cat([3 * draw(6, 10, name="p")[kind] + 0.3 * draw(120, 10), noise], dim=1)
    pool = a_pool(x)

    def right(features: Tensor) -> float:
        unit = torch.nn.functional.normalize(features.flatten(1), dim=1)
        similarity = (unit @ unit.T).fill_diagonal_(-2)
        return float((kind[similarity.argmax(1)] == kind).float().mean())

    trained = SimCLR(epochs=60, batch_size=60, lr=5e-3, layer="body").encode(pool)
    untrained = SimCLR(epochs=0, layer="body").encode(pool)
    assert right(trained) > right(untrained)


def test_encoding_leaves_the_pool_as_it_was() -> None:
    pool = a_pool()
    before = pool.inputs.clone()
    CSI(**QUICK).encode(pool)
    assert torch.equal(pool.inputs, before)


def test_diverged_training_is_reported() -> None:
    with pytest.raises(ValueError, match=r"SimCLR: the features of \d+ of 40 examples are NaN or infinite; lower its lr"):
        SimCLR(**QUICK, lr=1e30).encode(a_pool())


# Files of features


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_file_gives_the_rows_of_the_pools_examples(tmp_path: Path, suffix: str) -> None:
    values, path = draw(10, 3), tmp_path / f"features.{suffix}"
    np.save(path, values.numpy()) if suffix == "npy" else save_file({"f": values}, path)
    pool = a_pool(draw(4, 5))
    pool = Unlabeled(**{**vars(pool), "positions": torch.tensor([7, 2, 9, 0]), "total": 10})
    encoder = Array(str(path))
    encoder.check(pool)
    assert torch.equal(encoder.encode(pool)[torch.tensor([3, 1])], values[[0, 2]])


def test_a_file_that_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    save_file({"a": draw(2, 2), "b": draw(2, 2, name="b")}, tmp_path / "two.safetensors")
    cases = [
        ("short.npy", r"expected one row of features per training example \(40, F\), got \(3, 2\)"),
        ("absent.npy", "no file .*absent.npy; set features.<name>.path"),
        ("broken.npy", "cannot be read"),
        ("two.safetensors", "it holds the tensors a, b; say which with tensor="),
    ]
    for name, message in cases:
        with pytest.raises(ValueError, match=message):
            Array(str(tmp_path / name)).check(a_pool())


def test_nan_in_a_file_is_refused_when_its_row_is_asked_for(tmp_path: Path) -> None:
    values = np.zeros((40, 2), np.float32)
    values[5] = np.nan
    np.save(tmp_path / "f.npy", values)
    rows = Array(str(tmp_path / "f.npy")).encode(a_pool())
    assert rows[torch.tensor([4, 6])].shape == (2, 2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        rows[torch.tensor([4, 5])]


# Once per task, in memory and on disk


def test_features_are_computed_at_the_first_look_and_once() -> None:
    providers, pool = Providers({"a": Counting(), "b": Counting(), "c": Counting(3.0)}), a_pool()
    found = providers.of(pool)
    assert Counting.calls == 0
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(found["a"][rows], 2 * pool.inputs[rows])
    assert torch.equal(found["b"][rows], found["a"][rows])
    assert Counting.calls == 1, "two names of one encoder share its features"
    torch.testing.assert_close(found["c"][rows], 3 * pool.inputs[rows])
    assert Counting.calls == 2
    providers.of(a_pool())["a"][rows]
    assert Counting.calls == 2, "an equal pool is the same task"


def test_costly_features_survive_on_disk_and_only_for_what_they_were_made_of(tmp_path: Path) -> None:
    everyone = torch.arange(40)
    first = Providers({"a": Counting()}, tmp_path).of(a_pool())["a"][everyone]
    assert torch.equal(Providers({"x": Counting()}, tmp_path).of(a_pool())["x"][everyone], first)
    assert Counting.calls == 1
    others = [
        (Counting(2.5), a_pool()), (Counting(), a_pool(seed=1)), (Counting(), a_pool(draw(40, 5, name="other"))),
        (Counting(), a_pool(net=lambda: mlp((5,), 2, width=17))),
    ]  # fmt: skip
    for calls, (encoder, pool) in enumerate(others, start=2):
        Providers({"a": encoder}, tmp_path).of(pool)["a"][everyone]
        assert Counting.calls == calls
    assert len(list((tmp_path / "features").iterdir())) == 5, "whole files only"


def test_a_damaged_file_is_named_and_an_unwritable_folder_only_warned_about(tmp_path: Path) -> None:
    Providers({"a": Counting()}, tmp_path).of(a_pool())["a"][torch.tensor([0])]
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is damaged .*; delete it to have the features computed again"):
        Providers({"a": Counting()}, tmp_path).of(a_pool())["a"][torch.tensor([0])]
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match="features are not kept"):
        Providers({"a": Counting()}, blocked).of(a_pool())["a"][torch.tensor([0])]


def test_memory_holds_the_features_of_a_few_tasks_only() -> None:
    providers = Providers({"a": Counting()})
    for seed in range(encoder_module.IN_MEMORY + 3):
        providers.of(a_pool(seed=seed))["a"][torch.tensor([0])]
    assert len(providers._kept) == encoder_module.IN_MEMORY


def test_the_folder_is_the_users_own_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ALENV_CACHE", raising=False)
    assert default_folder() == tmp_path / "alenv"
    monkeypatch.setenv("ALENV_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    assert assemble(features={"a": "raw"}).providers.folder == tmp_path / "mine"
    assert assemble(cache=None).providers.folder is None
    assert assemble(cache="here").providers.folder == Path("here")


# The way into a run


def a_problem(**options: Any) -> Any:
    strategies = [{"name": "typiclust", "features": "semantic"}, "uniform"]
    return assemble(strategies=strategies, plan=Plan(12, 4, 2), device="cpu", cache=None, **options)


def test_a_strategy_gets_the_features_of_the_encoder_its_name_is_mapped_to() -> None:
    problem = a_problem(features={"semantic": Counting(0.5)})
    campaign = problem.campaign(0)
    campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(campaign.begin().indices))))
    assert Counting.calls == 0
    campaign.choose(1)
    assert Counting.calls == 0, "a strategy that does not run costs nothing"
    campaign.choose(0)
    assert Counting.calls == 1
    found = campaign.round.features("semantic")
    flat = 0.5 * campaign.task.inputs[:].flatten(1)
    torch.testing.assert_close(found.candidates, flat[campaign.round.candidates])
    torch.testing.assert_close(found.labeled, flat[campaign.round.labeled_indices])
    torch.testing.assert_close(found.last, flat[campaign.round.last.indices])
    assert found.discarded.shape == (0, 64)
    assert found.views == 1


def test_encoders_see_no_label() -> None:
    assert not {"targets", "labels", "task", "source"} & set(Unlabeled.__dataclass_fields__)


def test_features_nobody_provides_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"needs features:semantic.*set features=\{semantic: simclr\} \(encoders: .*simclr"):
        a_problem().campaign(0)
    with pytest.raises(ValueError, match="unknown encoder 'simcrl'; did you mean 'simclr'"):
        a_problem(features={"semantic": "simcrl"})
    with pytest.raises(ValueError, match="expected features to map names to encoders"):
        a_problem(features="simclr")


def test_a_file_of_features_is_checked_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        a_problem(features={"semantic": {"name": "array", "path": str(tmp_path / "none.npy")}}).campaign(0)


def test_a_file_is_aligned_with_the_data_sets_training_examples(tmp_path: Path) -> None:
    source = library.build("dataset", "digits")
    np.save(tmp_path / "own.npy", np.arange(len(source.train), dtype=np.float32)[:, None])
    problem = a_problem(features={"semantic": {"name": "array", "path": str(tmp_path / "own.npy")}})
    campaign = problem.campaign(3)
    rows = campaign._features["semantic"][torch.arange(len(campaign.task))][:, 0].long()
    assert tuple(source.train.ids[i] for i in rows.tolist()) == campaign.task.ids


def test_views_come_flat_with_their_number_and_blocks_and_parts_keep_them() -> None:
    values = draw(9, 4, 2)
    now = Round.from_arrays(features={"d": (values, draw(3, 4, 2, name="l"), draw(2, 4, 2, name="o"))}, num_classes=2)
    found = now.features("d")
    assert (found.views, found.candidates.shape, found.labeled.shape, found.discarded.shape) == (4, (9, 8), (3, 8), (2, 8))
    part = now.subset(torch.tensor([4, 1])).features("d")
    assert part.views == 4
    assert torch.equal(part.candidates, values[[4, 1]].flatten(1))
    assert torch.equal(part.discarded, found.discarded)
