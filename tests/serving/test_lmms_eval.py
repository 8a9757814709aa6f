"""lmms-eval asks a model of ours about a task made here; answers must be those of `answer`.

pytest -n 0 -m serving tests/serving/test_lmms_eval.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from environment import lmms_eval

from llava_lab.__main__ import main
from llava_lab.convert.save import export_model
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.video import Frames
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.videos import TinyVideos

pytestmark = [pytest.mark.serving, pytest.mark.timeout(1800)]

TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function seen.visual
doc_to_text: !function seen.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 12, temperature: 0, do_sample: false}}
process_results: !function seen.results
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
metadata: [{{version: 0.0}}]
"""
SEEN = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["path"]).convert("RGB") if doc["path"].endswith("png") else doc["path"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]

def results(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""


def make(folder: Path) -> Path:
    """A LLaVA-NeXT-Video of a few thousand weights, exported."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tower = {**sizes, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    config = {**sizes, "model_type": "llama", "vocab_size": 768, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    config |= {"initializer_range": 0.3}
    llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer")
    encoder = ClipEncoder(None, layer=-1, pretrained=False, config=tower)
    model = Llava(encoder, MLP, llm, newline=True).eval()
    for weight in model.connector.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    export_model(model, Frames(8, image=AnyRes("1x2, 2x1, 2x2")), folder)
    return folder


def ask(folder: Path, model: Path, rows: list[dict]) -> subprocess.CompletedProcess:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    (folder / "seen.py").write_text(SEEN)
    command = [str(lmms_eval()), "-m", "lmms_eval", "--model", "llava_lab", "--tasks", "tiny"]
    command += ["--model_args", f"model={model},frames=8", "--include_path", str(folder)]
    command += ["--batch_size", "4", "--log_samples", "--output_path", str(folder / "logs")]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    return subprocess.run(
        command, env={**os.environ, **quiet}, cwd=folder, capture_output=True, text=True
    )


def test_lmms_eval_has_the_answers_of_answer(tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    world = tmp_path / "world"
    TinyVideos(world, train_videos=2, eval_videos=3).generate()
    clips = sorted((world / "videos").rglob("*.mp4"))
    TinyWorld(tmp_path / "still", train_images=3, eval_images=3, text_rows=2).generate()
    stills = sorted((tmp_path / "still" / "images").rglob("*.png"))[:5]
    rows = [
        {"path": str(path), "text": f"What is {word}?"}
        for path in [*stills, *clips]
        for word in ("this", "left", "red")
    ]
    questions = [
        {
            "question_id": number,
            "video" if row["path"].endswith("mp4") else "image": row["path"].removeprefix(
                f"{tmp_path}/"
            ),
            "text": row["text"],
        }
        for number, row in enumerate(rows)
    ]
    path, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    arguments = ["--images", str(tmp_path), "--out", str(out), "--frames", "8"]
    arguments += ["--max-new-tokens", "12"]
    main(["answer", str(model), str(path), *arguments])
    ours = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    for row, text in zip(rows, ours, strict=True):
        row["answer"] = text
    rows[0]["answer"] += " not"  # so that a score of 1 would be a fault
    run = ask(tmp_path, model, rows)
    assert run.returncode == 0, run.stderr[-5000:]
    (found,) = (tmp_path / "logs").rglob("*_samples_tiny.jsonl")
    samples = sorted(map(json.loads, found.read_text().splitlines()), key=lambda s: s["doc_id"])
    assert [sample["filtered_resps"] for sample in samples] == ours
    assert sum(sample["right"] for sample in samples) == len(rows) - 1
    assert len(set(ours)) > len(stills)

    (tmp_path / "broken.mp4").write_bytes(clips[0].read_bytes()[:2000])
    (tmp_path / "logs").rename(tmp_path / "logs of the good run")
    run = ask(tmp_path, model, [*rows[:2], {**rows[0], "path": str(tmp_path / "broken.mp4")}])
    # lmms-eval's own status is 0 after an error of any model; it has no result then.
    assert "broken.mp4: not a video, damaged, or cut short" in run.stderr + run.stdout
    assert not list((tmp_path / "logs").rglob("*results.json"))
    assert list((tmp_path / "logs of the good run").rglob("*results.json"))
