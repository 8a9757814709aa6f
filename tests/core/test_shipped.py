"""Files that ship with the package are found from any folder, in a checkout and from a wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from llava_lab.core.shipped import FOLDERS, shipped, with_shipped

EXPERIMENT = "experiments/llava15.yaml"


def test_what_ships_is_found_and_what_does_not_is_named() -> None:
    assert shipped(EXPERIMENT).samefile(REPOSITORY / EXPERIMENT)
    with pytest.raises(FileNotFoundError, match=r"experiments/llava16\.yaml does not ship"):
        shipped("experiments/llava16.yaml")


def test_files_that_are_not_here_are_the_packages_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = ["fit", "-c", EXPERIMENT, "--config=configs/scale/small.yaml", "-c", "my/own.yaml"]
    paths = (shipped(EXPERIMENT), shipped("configs/scale/small.yaml"))
    assert with_shipped(mine) == [
        *("fit", "-c", str(paths[0]), f"--config={paths[1]}", "-c", "my/own.yaml")
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"llava_lab: {EXPERIMENT} is not here; taking {paths[0]}" and len(said) == 2
    rest = ["experiments/none.yaml", "--runs=experiments/llava15.yaml", "--a.b=1", "", "=.yaml"]
    assert with_shipped(rest) == rest


def test_a_file_that_is_here_is_taken_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / EXPERIMENT).write_text("experiment: mine\n")
    monkeypatch.chdir(tmp_path)
    assert with_shipped(["-c", EXPERIMENT]) == ["-c", EXPERIMENT]
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed from its wheel; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", str(REPOSITORY), *options, "-w", str(folder)], check=True)
    (built,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run(
        [*pip, "install", str(built), "--no-deps", "--no-index", "--target", str(target)],
        check=True,
    )
    return target


def test_a_wheel_holds_all_that_ships(wheel: Path) -> None:
    for folder in FOLDERS:
        names = {path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.yaml")}
        assert names and all((wheel / "llava_lab" / "shipped" / name).is_file() for name in names)
    assert (wheel / "llava_lab" / "py.typed").is_file()
    assert (wheel / "bin" / "llava-lab").is_file()


def test_a_wheel_works_outside_of_a_checkout(wheel: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llava_lab", "plan", "-c", EXPERIMENT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"taking {wheel / 'llava_lab' / 'shipped' / EXPERIMENT}" in done.stderr
    assert "visual tokens" in done.stdout
