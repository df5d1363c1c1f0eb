"""The package as people get it: a bare checkout, an editable install, a wheel, an sdist, other Pythons, Hydra's multirun."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("selectors", "strategies", "configs")
DEPENDENCIES = ("gymnasium", "torch", "hydra", "yaml", "rich")
QUICK = ("selector=random_pick", "budget.rounds=1", "device=cpu")
MODULES = "import alenv.selectors.fixed, alenv.strategies.margin, alenv.configs"


class Done(NamedTuple):
    """What a process said."""

    out: str
    err: str


def run(words: Sequence[str | Path], cwd: Path, code: int = 0) -> Done:
    """Run a command without this process's paths and without network; expect an exit code."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HYDRA", "PIP_", "COV"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"{' '.join(map(str, words))}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return Done(done.stdout, done.stderr)


def tracked() -> list[Path]:
    """Return the names of what a clone would hold, new files included."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(name) for name in sorted(set(listed.stdout.split("\0"))) if name and (ROOT / name).exists()]


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as it is now; every other copy is made from this one, so they agree."""
    target = tmp_path_factory.mktemp("snapshot")
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


def copied(snapshot: Path, target: Path, links: bool = True) -> Path:
    """Copy the checkout; without `links`, as clones on systems that know none have it."""
    shutil.copytree(snapshot, target, symlinks=True, dirs_exist_ok=True)
    for link in () if links else LINKS:
        (target / "alenv" / link).unlink()
    return target


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything this interpreter has installed except alenv."""
    folder = tmp_path_factory.mktemp("dependencies")
    for origin in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]):
        for entry in Path(origin).iterdir():
            if "alenv" not in entry.name.lower() and entry.suffix != ".pth" and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    return folder


class Environment(NamedTuple):
    """A virtual environment that sees the dependencies."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        return self.scripts / "python"

    @property
    def packages(self) -> Path:
        (packages,) = [*self.folder.glob("lib/python*/site-packages"), *self.folder.glob("Lib/site-packages")][:1]
        return packages

    def install(self, *words: str | Path) -> None:
        """Use this interpreter's pip for that environment."""
        run([sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps", "--quiet", *words], self.folder)

    def home_of_alenv(self, cwd: Path) -> Path:
        """Return the folder that `import alenv` finds from `cwd`."""
        return Path(run([self.python, "-c", "import alenv; print(alenv.__file__)"], cwd).out.strip()).resolve().parent


def environment(folder: Path, dependencies: Path) -> Environment:
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    made = Environment(folder)
    made.packages.joinpath("dependencies.pth").write_text(f"{dependencies}\n")
    return made


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, dependencies: Path) -> Environment:
    """An interpreter with the dependencies and without alenv."""
    made = environment(tmp_path_factory.mktemp("bare"), dependencies)
    absent = run([made.python, "-c", "import alenv"], made.folder, code=1)
    assert "No module named 'alenv'" in absent.err, "the editable install of this interpreter leaks"
    return made


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, snapshot: Path) -> Path:
    return copied(snapshot, tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def clone_without_links(tmp_path_factory: pytest.TempPathFactory, snapshot: Path) -> Path:
    return copied(snapshot, tmp_path_factory.mktemp("clone"), links=False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, snapshot: Path) -> Path:
    """The wheel, built from a copy: building in the checkout would leave `build/` behind."""
    return built_wheel(copied(snapshot, tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel"))


def built_wheel(source: Path, target: Path) -> Path:
    pytest.importorskip("setuptools", reason="setuptools is absent")
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", target, source], target)
    (made,) = target.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, dependencies: Path, wheel: Path) -> Environment:
    """An environment with the wheel."""
    made = environment(tmp_path_factory.mktemp("installed"), dependencies)
    made.install(wheel)
    return made


@pytest.fixture(scope="session")
def editable(tmp_path_factory: pytest.TempPathFactory, dependencies: Path, snapshot: Path) -> tuple[Environment, Path]:
    """An environment with an editable install, and the checkout it points to."""
    made = environment(tmp_path_factory.mktemp("editable"), dependencies)
    source = copied(snapshot, tmp_path_factory.mktemp("editable-source"))
    made.install("--no-build-isolation", "--editable", source)
    return made, source


def summaries(folder: Path) -> list[dict[str, object]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("runs/*/summary.json"))]


def contents(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


# A checkout that nobody installed


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_an_uninstalled_checkout_answers_help(bare: Environment, checkout: Path, clone_without_links: Path, links: bool) -> None:
    root = checkout if links else clone_without_links
    assert (root / "alenv" / "strategies").is_symlink() == links
    assert bare.home_of_alenv(root) == root / "alenv"
    said = run([bare.python, "-m", "alenv.train", "--help"], root).out
    assert "selector: albl, autoal" in said


@pytest.mark.slow
@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_an_uninstalled_checkout_imports_and_runs(
    bare: Environment, checkout: Path, clone_without_links: Path, links: bool
) -> None:
    root = checkout if links else clone_without_links
    where = run(
        [bare.python, "-c", f"{MODULES}; print(alenv.strategies.margin.__file__, alenv.configs.__file__)"], root
    ).out.split()
    assert [Path(name).resolve() for name in where] == [root / "strategies" / "margin.py", root / "configs" / "__init__.py"]
    run([bare.python, "-m", "alenv.train", *QUICK, f"seed={int(links)}"], root)
    assert [summary["seed"] for summary in summaries(root)] == [int(links)]
    shutil.rmtree(root / "runs")


def test_the_root_of_a_checkout_hides_no_module_of_the_standard_library(bare: Environment, checkout: Path) -> None:
    program = (
        "import selectors, subprocess, asyncio, sys\n"
        "print(selectors.__file__)\n"
        "subprocess.run([sys.executable, '-c', 'import selectors; selectors.DefaultSelector'], check=True)\n"
        "asyncio.run(asyncio.sleep(0))\n"
    )
    for root in (checkout, ROOT):
        found = Path(run([bare.python, "-c", program], root).out.strip())
        assert found.resolve() == Path(sysconfig.get_path("stdlib"), "selectors.py").resolve()


def test_the_folders_beside_the_package_hold_no_init_that_would_shadow_a_standard_module() -> None:
    for folder in ("selectors", "strategies", "tests", "tests/selectors"):
        assert not (ROOT / folder / "__init__.py").exists(), folder


def test_no_file_beside_the_package_bears_the_name_of_a_standard_module() -> None:
    ours = {path.stem for folder in ("selectors", "strategies", "tests", "alenv") for path in (ROOT / folder).glob("*.py")}
    beside = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not (ours - {"__init__"}) & set(sys.stdlib_module_names)
    assert not beside & set(sys.stdlib_module_names)


def test_the_links_in_the_package_lead_to_the_folders_beside_it() -> None:
    for link in LINKS:
        path = ROOT / "alenv" / link
        if path.is_file() or not path.exists():
            pytest.skip("this checkout has no symbolic links")
        assert path.readlink() == Path("..", link)


# What importing costs


def test_importing_alenv_registers_the_ids_without_torch(bare: Environment, checkout: Path) -> None:
    program = (
        "import sys, alenv, gymnasium\n"
        "print('torch' in sys.modules, *sorted(name for name in gymnasium.registry if name.startswith('alenv/')))"
    )
    said = run([bare.python, "-c", program], checkout).out.split()
    assert said == ["False", "alenv/Mix-v0", "alenv/Pick-v0", "alenv/SampleDraw-v0", "alenv/SampleMix-v0"]


@pytest.mark.slow
def test_gymnasium_makes_an_environment_by_module_and_id(bare: Environment, checkout: Path) -> None:
    program = "import gymnasium; print(gymnasium.make('alenv:alenv/Mix-v0').unwrapped.__class__.__name__)"
    assert run([bare.python, "-c", program], checkout).out.strip() == "ActiveLearningEnv"


def test_help_is_answered_without_torch(bare: Environment, checkout: Path) -> None:
    loaded = {
        line.split("|")[-1].strip()
        for line in run([bare.python, "-X", "importtime", "-m", "alenv.train", "--help"], checkout).err.splitlines()
    }
    assert {"alenv", "hydra", "alenv.cli"} <= loaded, "the probe sees imports"
    assert not {"torch", "sklearn", "transformers", "stable_baselines3"} & loaded


# An editable install


@pytest.mark.slow
def test_an_editable_install_works_from_elsewhere(editable: tuple[Environment, Path], tmp_path: Path) -> None:
    made, source = editable
    assert made.home_of_alenv(tmp_path) == source / "alenv"
    run([made.python, "-c", MODULES], tmp_path)
    run([made.scripts / "alenv-train", *QUICK], tmp_path)
    assert len(summaries(tmp_path)) == 1


@pytest.mark.slow
def test_an_editable_install_sees_a_new_strategy_at_once(editable: tuple[Environment, Path], tmp_path: Path) -> None:
    made, source = editable
    add_strategy(source, "latecomer")
    assert "latecomer" in run([made.scripts / "alenv-list", "strategy"], tmp_path).out
    run([made.python, "-c", "import alenv.strategies.latecomer"], tmp_path)


# The wheel


@pytest.mark.slow
def test_the_wheel_holds_the_library_its_configurations_and_nothing_else(wheel: Path, snapshot: Path) -> None:
    files = [path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file() or path.is_symlink()]
    expected = {str(name) for name in files if name.parts[0] == "alenv" and name.name not in LINKS}
    expected |= {f"alenv/{name}" for name in files if name.parts[0] in LINKS}
    found = {name for name in contents(wheel) if not name.split("/")[0].endswith(".dist-info")}
    assert found == expected
    assert {"alenv/py.typed", "alenv/configs/train.yaml", "alenv/configs/__init__.py", "alenv/strategies/margin.py"} <= found
    assert not any("test" in name for name in found)


@pytest.mark.slow
def test_the_wheel_names_its_commands_and_the_pythons_it_runs_on(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (information,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = opened.read(information).decode()
        commands = opened.read(information.replace("METADATA", "entry_points.txt")).decode()
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert {line.split(" = ")[0] for line in commands.splitlines() if " = " in line} == {
        "alenv-train",
        "alenv-train-agent",
        "alenv-compare",
        "alenv-doctor",
        "alenv-list",
    }


@pytest.mark.slow
def test_the_wheel_works_from_elsewhere(installed: Environment, tmp_path: Path) -> None:
    assert installed.home_of_alenv(tmp_path) == installed.packages.resolve() / "alenv"
    run([installed.python, "-c", MODULES], tmp_path)
    assert "selector: albl" in run([installed.scripts / "alenv-train", "--help"], tmp_path).out
    run([installed.scripts / "alenv-train", *QUICK], tmp_path)
    assert len(summaries(tmp_path)) == 1


@pytest.mark.slow
def test_the_wheel_works_with_a_checkout_as_working_directory(installed: Environment, checkout: Path) -> None:
    assert installed.home_of_alenv(checkout) == checkout / "alenv", "python -c puts the working directory first"
    assert "all is well" in run([installed.python, "-m", "alenv.doctor"], checkout).out
    assert "selector: albl" in run([installed.scripts / "alenv-train", "--help"], checkout).out
    run([installed.scripts / "alenv-train", *QUICK, "seed=7"], checkout)
    assert [summary["seed"] for summary in summaries(checkout)] == [7]
    shutil.rmtree(checkout / "runs")


@pytest.mark.slow
def test_the_commands_exist_and_run(installed: Environment, tmp_path: Path) -> None:
    assert "all is well" in run([installed.scripts / "alenv-doctor"], tmp_path).out
    assert "strategy: abstention_gate, " in run([installed.scripts / "alenv-list"], tmp_path).out
    assert "did you mean 'selector'" in run([installed.scripts / "alenv-train", "selectr=fixed"], tmp_path, code=1).err


@pytest.mark.slow
def test_an_sdist_makes_the_same_wheel(wheel: Path, snapshot: Path, tmp_path: Path) -> None:
    source = copied(snapshot, tmp_path / "source")
    hook = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"
    archive = tmp_path / run([sys.executable, "-c", hook, tmp_path], source).out.splitlines()[-1]
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(archive, unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    again = built_wheel(folder, tmp_path)
    assert contents(again) == contents(wheel)
    with zipfile.ZipFile(again) as ours, zipfile.ZipFile(wheel) as theirs:
        differing = [name for name in ours.namelist() if ".dist-info/" not in name and ours.read(name) != theirs.read(name)]
    assert differing == []


@pytest.mark.slow
def test_the_build_command_makes_the_same_wheel_through_an_sdist(wheel: Path, snapshot: Path, tmp_path: Path) -> None:
    pytest.importorskip("build", reason="build is absent")
    source = copied(snapshot, tmp_path / "source")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source], tmp_path)
    (again,) = (tmp_path / "dist").glob("*.whl")
    assert contents(again) == contents(wheel)


# Many runs, new strategies


@pytest.mark.slow
def test_a_multirun_makes_a_directory_per_run(bare: Environment, checkout: Path) -> None:
    run([bare.python, "-m", "alenv.train", "-m", "seed=0,1", *QUICK], checkout)
    assert sorted(summary["seed"] for summary in summaries(checkout)) == [0, 1]
    assert {path.name.rpartition("-")[0] for path in (checkout / "runs").iterdir() if path.is_dir()} == {
        "digits-standard-random_pick-0",
        "digits-standard-random_pick-1",
    }
    shutil.rmtree(checkout / "runs")


def add_strategy(root: Path, name: str) -> None:
    """Add a strategy the way the documentation says: one Python file, one YAML file."""
    (root / "strategies" / f"{name}.py").write_text(
        "from alenv.round import Round\nfrom alenv.strategy import ScoreStrategy\n\n\n"
        "class Newcomer(ScoreStrategy):\n    needs = frozenset({'probs'})\n\n    def __init__(self, sign: float = 1.0) -> None:\n"
        "        self.sign = sign\n\n    def score(self, round: Round):\n        return -self.sign * round.probs.max(1).values\n"
    )
    (root / "configs" / "strategy" / f"{name}.yaml").write_text(f"_target_: alenv.strategies.{name}.Newcomer\nsign: 1.0\n")


@pytest.mark.slow
def test_a_new_strategy_is_one_python_file_and_one_yaml_file(bare: Environment, snapshot: Path, tmp_path: Path) -> None:
    root = copied(snapshot, tmp_path / "checkout", links=False)
    add_strategy(root, "newcomer")
    run([bare.python, "-m", "alenv.train", "selector=fixed", "selector.strategy=newcomer", "budget.rounds=1", "device=cpu"], root)
    (rounds,) = (root / "runs").glob("*/rounds.jsonl")
    last = json.loads(rounds.read_text(encoding="utf-8").splitlines()[-1])
    assert last["strategies"] == ["newcomer"]
    assert set(last["chosen_by"]) == {"newcomer"}


# Other Pythons


def other_python(version: str) -> Path:
    """Return a working interpreter of that version, or skip by name."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python{version}")]
    for candidate in filter(None, found):
        probe = subprocess.run(
            [candidate, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True, check=False
        )
        if probe.stdout.strip() == version:  # pyenv's shims stand there for versions that are not switched on
            return Path(candidate)
    return pytest.skip(f"python{version} is absent")


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_another_python_reads_every_file(version: str, checkout: Path) -> None:
    python = other_python(version)
    program = "import pathlib\nfor f in pathlib.Path().rglob('*.py'): compile(f.read_bytes(), str(f), 'exec')\nprint('read')"
    assert run([python, "-W", "error", "-c", program], checkout).out.strip() == "read"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_another_python_imports_and_runs(version: str, checkout: Path) -> None:
    python = other_python(version)
    lacking = [
        m for m in DEPENDENCIES if subprocess.run([python, "-c", f"import {m}"], capture_output=True, check=False).returncode
    ]
    if lacking:
        pytest.skip(f"python{version} lacks {', '.join(lacking)}")
    run([python, "-c", f"{MODULES}, alenv.train, alenv.env"], checkout)
    run([python, "-m", "alenv.train", *QUICK, f"hydra.run.dir={checkout}/runs/other-{version}"], checkout)
    assert len(summaries(checkout)) == 1
    shutil.rmtree(checkout / "runs")
