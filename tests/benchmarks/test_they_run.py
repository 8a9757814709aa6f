"""Benchmarks that compare two sides come to their tables, in both types of weights.

    pytest -n 0 -m slow tests/benchmarks    two minutes; sft.py needs the extra `bench`

Their numbers at this size say nothing.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from common import SIZES

HERE = Path(__file__).resolve().parent
FEW = ["--size", next(iter(SIZES)), "--device", "cpu", "--rounds", "1"]
WAYS = {
    "sft.py": ["--batch", "4", "--steps", "2", "--recompute", "--ways", "bare", "padded"],
    "dpo.py": ["--pairs", "2", "--ways", "ours", "padded, known"],
    "answer.py": ["--plain", "1"],
    "memory.py": ["--targets", "64", "--most", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("script", WAYS)
def test_a_benchmark_comes_to_its_table(script: str, dtype: str, tmp_path: Path) -> None:
    if script == "sft.py" and importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs accelerate: pip install -e '.[bench]'")
    file = tmp_path / "found.json"
    command = [sys.executable, str(HERE / script), *FEW, *WAYS[script]]
    command += ["--dtype", dtype, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ours" in str(json.loads(file.read_text())["rows"])
