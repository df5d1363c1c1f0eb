"""The two commands that only report: what is installed, and what there are names for."""

import contextlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from alenv import catalog, doctor, library
from alenv.doctor import Finding

PROJECT = tomllib.loads(Path(__file__).resolve().parent.parent.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        doctor.main()
    return int(stop.value.code or 0), capsys.readouterr().out


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> "list[str]":
    """Names put in this list look as if they were not installed."""
    absent: list[str] = []
    there = metadata.version

    def version(name: str) -> str:
        if name in absent:
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(metadata, "version", version)
    return absent


def names(requirements: list[str]) -> set[str]:
    return {
        requirement.split(";")[0].split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip() for requirement in requirements
    }


def test_here_all_is_well(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = report(capsys)
    assert code == 0, said
    assert said.rstrip().endswith("all is well: python -m alenv.train")
    assert "MISSING" not in said
    assert list(tmp_path.iterdir()) == [], "the report leaves nothing behind"


def test_every_finding_is_well_formed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    findings = doctor.examine()
    assert all(isinstance(finding, Finding) and finding.about and finding.found for finding in findings)
    assert all(finding.well in (True, False, None) for finding in findings)
    assert all(bool(finding.remedy) == (finding.well is not True) for finding in findings), (
        "a remedy where something is amiss, and only there"
    )
    assert len({finding.about for finding in findings}) == len(findings)


def test_it_speaks_of_everything_a_user_asks_about() -> None:
    about = {finding.about for finding in doctor.examine()}
    assert about >= {
        "python",
        "torch",
        "device",
        "torch + torchvision",
        "environments",
        "library",
        "data: digits",
        "run directories",
    }


def test_it_knows_the_dependencies_and_extras_of_the_project() -> None:
    assert set(doctor.REQUIRED) == names(PROJECT["dependencies"])
    extras = {extra: names(listed) - {"alenv"} for extra, listed in PROJECT["optional-dependencies"].items()}
    assert {extra: set(listed) for extra, listed in doctor.EXTRAS.items()} == extras


def test_the_environments_are_listed_by_their_ids() -> None:
    found = {finding.about: finding.found for finding in doctor.examine()}
    assert found["environments"] == "alenv/Mix-v0, alenv/Pick-v0, alenv/SampleDraw-v0, alenv/SampleMix-v0"
    assert found["library"] == f"{len(library.names('strategy'))} strategies, {len(library.names('selector'))} selectors"


@pytest.mark.parametrize("package", ["stable-baselines3", "safetensors"])
def test_a_missing_package_gives_exit_code_1_and_the_command_that_mends_it(
    package: str, lacking: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lacking.append(package)
    code, said = report(capsys)
    assert code == 1
    lines = said.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("MISSING"))
    assert lines[at].split() == ["MISSING", package, "not", "installed"]
    assert lines[at + 1].strip() == f"-> pip install {package}"
    assert lines[-1] == "1 problems"


def test_a_missing_extra_is_no_problem_but_has_its_command(lacking: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lacking += ["hypothesis", "mypy"]
    code, said = report(capsys)
    assert code == 0
    line = next(line for line in said.splitlines() if "extra test" in line)
    assert line.startswith("-")
    assert "hypothesis" in line
    assert "mypy" in line
    assert '-> pip install "alenv[test]"' in said


def test_a_python_outside_the_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PYTHONS", ((3, 90), (3, 91)))
    finding = next(finding for finding in doctor.examine() if finding.about == "python")
    assert finding.well is False
    assert "Python 3.11" in finding.remedy


def test_the_range_of_pythons_is_that_of_the_project() -> None:
    low, high = (".".join(map(str, version)) for version in doctor.PYTHONS)
    assert PROJECT["requires-python"] == f">={low},<{high}"


def test_torch_and_torchvision_that_do_not_match_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatched(name: str) -> None:
        raise ImportError("operator torchvision::nms does not exist")

    monkeypatch.setattr("alenv.vision.torchvision_module", mismatched)
    finding = next(finding for finding in doctor.examine() if finding.about == "torch + torchvision")
    assert finding.well is False
    assert finding.remedy == "pip install --force-reinstall torch torchvision"


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refused)
    finding = next(finding for finding in doctor.examine() if finding.about == "run directories")
    assert finding.well is False
    assert "Permission denied" in finding.found
    assert "hydra.run.dir=" in finding.remedy


@pytest.mark.parametrize("module", ["torch", "jaxtyping", "yaml"])
def test_the_report_survives_a_module_that_does_not_import(module: str) -> None:
    """A subprocess: hiding torch from this process would hide it from other tests."""
    program = f"import sys; sys.modules[{module!r}] = None; from alenv import doctor; doctor.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert "run directories" in done.stdout, "the report goes on to its end"
    assert done.returncode == 1


def listing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["alenv-list", *words])
    with contextlib.suppress(SystemExit):
        catalog.main()
    return capsys.readouterr().out


def test_the_catalog_names_everything_in_the_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = dict(line.split(": ", 1) for line in listing(monkeypatch, capsys).splitlines())
    assert {group: found.split(", ") for group, found in said.items()} == {
        group: library.names(group) for group in library.GROUPS if library.names(group)
    }


def test_the_catalog_names_only_the_groups_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split(":")[0] for line in listing(monkeypatch, capsys, "selector", "net").splitlines()] == ["selector", "net"]


def test_the_catalog_answers_a_misspelt_group_by_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["alenv-list", "strategie"])
    with pytest.raises(SystemExit, match=r"alenv: unknown group 'strategie'; did you mean 'strategy'\?"):
        catalog.main()
