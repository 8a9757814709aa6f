"""The way of the data: every leg is in its folder, and one sample walks them all."""

import ast
import re
from pathlib import Path

import torch
from conftest import REPOSITORY

from llava_lab.data.chat import get_template
from llava_lab.data.modules.encoded import EncodedRows, ViewLoader
from llava_lab.data.packing import Batch
from llava_lab.data.sample import read_samples
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad
from llava_lab.model.arrange import arrange
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.model.pool import connect
from llava_lab.model.splice import splice
from llava_lab.tiny_world.generate import INSTRUCT_15
from llava_lab.train.loss import NextToken

# Each folder's legs of the way.
LEGS = {
    "data": {1, 2, 3},
    "model": {4, 5, 6, 7, 8, 9},
    "train": {10},
    "evaluate": {11},
    "report": {12},
}


def test_each_leg_is_in_its_folder_and_none_is_missing() -> None:
    for folder, legs in LEGS.items():
        found: set[int] = set()
        for path in sorted((REPOSITORY / "llava_lab" / folder).rglob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            if number := re.match(r"(\d+)\w*\. ", text):
                assert int(number[1]) in legs, path
                found.add(int(number[1]))
        assert found == legs, folder


def test_one_sample_walks_the_way(small_world: Path) -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 96, None, options)
    config = {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer")
    model = Llava(encoder, MLP, llm).eval()

    samples = read_samples(Source(small_world / INSTRUCT_15, small_world / "images"), seed=0)
    (sample,) = samples[:1]  # 1
    assert sample.images and sample.turns[0].role == "user"
    loader = ViewLoader(Pad(), model.view_spec)
    rows = EncodedRows([sample], {None: get_template("v1")}, llm.tokenizer, loader, "first", 2048)
    row = rows[0]  # 2, 3
    assert row.views is not None and row.views.shape == (1, 3, 96, 96)
    assert row.layouts[0].tokens == 36
    batch = Batch.pack([row])
    assert (batch.ids == -200).sum() == 36
    features = model.encode(batch.views)  # 4
    assert features.shape == (1, 6, 6, 48)
    pieces = connect(features, batch.layouts, model.connector)  # 5, 6
    visual = arrange(pieces, batch.layouts, None)  # 7
    assert visual.shape == (36, 64)
    embeddings = splice(llm.embed(batch.ids), visual, batch)  # 8
    assert embeddings.shape == (len(batch.ids), 64)
    assert torch.equal(embeddings[batch.ids == -200], visual)
    hidden = llm(embeddings, batch.forest)  # 9
    assert hidden.shape == embeddings.shape
    loss, numbers = NextToken()(model, batch)  # 10
    logits = llm.head()(hidden)
    labels = torch.tensor(row.segments[0].labels)
    wanted = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100)
    assert torch.allclose(loss, wanted, atol=1e-5)
    share = numbers["supervised_share"]
    assert share == (labels != -100).sum() / len(labels)
