"""The default tests with the lowest versions that pyproject.toml promises, or with the newest.

    python tests/environments/lowest.py
    python tests/environments/lowest.py --quick
    python tests/environments/lowest.py --newest
    python tests/environments/lowest.py --python python3.13 -- tests/model -k timm

makes a virtual environment in build/ (minutes, 6 GB; again where pyproject.toml has changed) and
runs pytest in it, or with --quick the tests of encoders, losses, and of a short fit. What stands
behind -- goes to pytest.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ("model/test_encoder.py", "train/test_cross_entropy.py", "train/test_curve.py")
# Extras that are promised as the dependencies are; tools of development are taken as they come.
EXTRAS = ("lora",)


def lowest(pyproject: Path) -> list[str]:
    """`NAME==VERSION` of every direct dependency, by its lower bound.

    Raises:
        ValueError: If one has none; names it.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    pins = []
    for line in [*project["dependencies"], *(each for name in EXTRAS for each in extras[name])]:
        found = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", line)
        if found is None:
            raise ValueError(f"{pyproject}: {line} has no lower bound; write NAME>=VERSION")
        pins.append("==".join(found.groups()))
    return pins


def environment(kind: str, python: str) -> Path:
    """The interpreter of an environment of the lowest or the newest versions; makes it."""
    release = subprocess.check_output(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True
    ).strip()
    folder = REPOSITORY / "build" / f"{kind}-{release}"
    made_of = hashlib.sha256((REPOSITORY / "pyproject.toml").read_bytes()).hexdigest()
    ready, inside = folder / "ready", folder / "bin" / "python"
    if ready.is_file() and ready.read_text() == made_of:
        return inside
    print(f"making {folder}", flush=True)
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    options = ["--upgrade"]
    if kind == "lowest":
        pins = folder / "lowest.txt"
        pins.write_text("\n".join(lowest(REPOSITORY / "pyproject.toml")) + "\n")
        options = ["--constraint", str(pins)]
    install = [str(inside), "-m", "pip", "--quiet", "install", *options]
    subprocess.run([*install, "--editable", f"{REPOSITORY}[dev]"], check=True)
    ready.write_text(made_of)
    return inside


def main() -> int:
    """Make the environment, and run the tests there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--newest", action="store_true", help="the newest versions instead")
    parser.add_argument("--quick", action="store_true", help="a minute of tests, not all")
    parser.add_argument("--python", default=sys.executable, help="interpreter to make it with")
    parser.add_argument("pytest", nargs="*", help="behind --: arguments of pytest")
    options = parser.parse_args()
    python = environment("newest" if options.newest else "lowest", options.python)
    subprocess.run([str(python), "-m", "pip", "list", "--format", "freeze"], check=True)
    tests = [*options.pytest, *(f"tests/{each}" for each in QUICK if options.quick)]
    return subprocess.run([str(python), "-m", "pytest", *tests], cwd=REPOSITORY).returncode


if __name__ == "__main__":
    sys.exit(main())
