"""vLLM's OpenAI server of an exported checkpoint, in an environment of its own."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from environment import vllm

ON_CPU = ("--dtype", "float32", "--enforce-eager")


@contextmanager
def serve(
    source: str, name: str, log: Path, frames: int, more: Sequence[str] = ON_CPU, threads: int = 0
) -> Iterator[str]:
    """Serve a checkpoint on a free port of this machine until the block ends; gives its URL.

    Args:
        source: Folder or hub id.
        name: The server's name of the model.
        log: File for what it prints.
        frames: Frames that it takes of a video.
        more: Flags of vLLM's.
        threads: Cores of a CPU that it computes on; 0 leaves that to vLLM.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(vllm()), "-m", "vllm.entrypoints.openai.api_server", *more]
    command += ["--host", "127.0.0.1", "--port", port, "--model", source]
    command += ["--served-model-name", name]
    # Pictures are scaled by Pillow as ours are, and not by torchvision, which rounds otherwise.
    command += ["--mm-processor-kwargs", json.dumps({"use_fast": False})]
    command += ["--media-io-kwargs", json.dumps({"video": {"num_frames": frames}})]
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if Path(source).is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    if threads:
        wanted["OMP_NUM_THREADS"] = str(threads)
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **wanted})
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if requests.get(f"{url}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                assert server.poll() is None, log.read_text()[-5000:]
                time.sleep(1)
        yield f"{url}/v1"
    finally:
        server.terminate()
        server.wait(60)
