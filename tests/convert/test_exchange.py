"""Checkpoints in and out; transformers' own LLaVA is the oracle of pixels, logits and answers."""

import itertools
import json
import re
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jinja2.exceptions import TemplateError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
)
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from llava_lab.__main__ import main
from llava_lab.convert.files import read_tensors
from llava_lab.convert.load import load_model
from llava_lab.convert.names import our_name, our_names
from llava_lab.convert.released import import_checkpoint
from llava_lab.convert.save import export_model
from llava_lab.convert.verify import check
from llava_lab.data.chat import get_template
from llava_lab.data.geometry import Pool
from llava_lab.data.media.clip import Clip
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.questions import read_questions
from llava_lab.data.sample import Turn
from llava_lab.data.tokens import IGNORE
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.experiment.experiment import Experiment
from llava_lab.model.connector.linear import Linear
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.connector.pixel_shuffle import PixelShuffle
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.generate import QuestionBatch, answer
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.model.weights import locate
from llava_lab.serve.chat import talk
from llava_lab.serve.models import show_videos

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
LM = {
    "vocab_size": 832,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    # Large, so that answers differ from picture to picture.
    "initializer_range": 0.3,
}
SIZES = [
    *((56, 56), (100, 60), (60, 100), (300, 31), (31, 300), (57, 55)),
    *((13, 9), (640, 480), (480, 641), (5, 200), (224, 224)),
]
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
MORE_SIZES = [
    *((56, 112), (112, 112), (168, 56), (1000, 40), (40, 1000), (300, 200), (200, 300), (333, 500)),
    *((500, 375), (1024, 683), (7, 5), (61, 59), (123, 77), (77, 123), (400, 399), (399, 400)),
    *((250, 100), (100, 250), (90, 30), (30, 90), (188, 47), (196, 49)),
]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    " ASSISTANT:{% endif %}{% endfor %}"
)


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 255, (5, 4, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for size in sizes
    ]


def as_transformers_4(folder: Path) -> None:
    """Rewrite a checkpoint as version 4 of transformers wrote it, which the hub's are."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["torch_dtype"] = part.pop("dtype", None) or "float32"
        part["transformers_version"] = "4.36.2"
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    text["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    usual = AutoConfig.for_model(text["model_type"]).to_dict()
    kept = {key: value for key, value in text.items() if key == "model_type" or key not in usual}
    kept |= {key: value for key, value in text.items() if usual.get(key) != value}
    config["text_config"] = {key: value for key, value in kept.items() if key != "layer_types"}
    path.write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    old = {
        re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): value
        for name, value in tensors.items()
    }
    save_file(old, folder / "model.safetensors", {"format": "pt"})


def make_theirs(
    folder: Path,
    tower: str,
    lm: str,
    tied: bool = False,
    tiles: bool = False,
    pool: tuple[str, int] | None = None,
    rope: dict | None = None,
) -> None:
    """A random checkpoint of transformers, as the hub has them: written by version 4.

    LLaVA-NeXT with `tiles`; LLaVA-NeXT-Video with the mode and stride of a `pool`, too.
    """
    torch.manual_seed(0)
    clip = tower == "clip"
    tokenizer = AutoTokenizer.from_pretrained(locate("asset:tokenizer"))
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    strategy = "default" if clip else "full"
    values = {
        "vision_config": {**TOWER, "model_type": f"{tower}_vision_model", "initializer_range": 0.2},
        "text_config": {
            **LM,
            "model_type": lm,
            "tie_word_embeddings": tied,
            # As in v1.6-Mistral, Llama-3 and Qwen1.5; the default is 10,000.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, **(rope or {})},
        },
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": tied,
    }
    views = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    colours = {} if clip else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    more = {}
    if tiles:
        values["image_grid_pinpoints"] = PINPOINTS
        if pool:
            values |= {"spatial_pool_mode": pool[0], "spatial_pool_stride": pool[1]}
            values["video_token_index"] = tokenizer.convert_tokens_to_ids("<video>")
            model = LlavaNextVideoForConditionalGeneration(LlavaNextVideoConfig(**values))
            more["video_processor"] = LlavaNextVideoVideoProcessor(**views, **colours)
        else:
            model = LlavaNextForConditionalGeneration(LlavaNextConfig(**values))
        images = LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **views, **colours)
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**values))
        images = (
            LlavaImageProcessor(do_pad=True, **views)
            if clip
            else SiglipImageProcessor(size={"height": 56, "width": 56})
        )
    for weight in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    kind = LlavaNextProcessor if tiles else LlavaProcessor
    (LlavaNextVideoProcessor if pool else kind)(
        **more,
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(clip),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    as_transformers_4(folder)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "llava-hf"
    make_theirs(folder, "clip", "llama")
    return folder


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "ours"
    import_checkpoint(str(released), out, template="v1")
    return out


def ask(model: Llava, views, picture: Image.Image | Clip, question: str) -> QuestionBatch:
    view_spec, tokenizer = model.encoder.view_spec, model.llm.tokenizer
    layout, pixels = views.layout(picture.size, view_spec), views.pixels(picture, view_spec)
    template = get_template(model.llm.template)
    turn = Turn("user", f"<image>\n{question}")
    ids = template.prompt([turn], tokenizer, [layout.tokens], "row")
    row = EncodedSample([Segment(ids, [IGNORE] * len(ids))], pixels, [layout], "row")
    return QuestionBatch(Batch.pack([row]), ["0"], 8, frozenset(template.stop_ids(tokenizer)))


@torch.no_grad()
def assert_equal_to_transformers(
    source: Path, out: Path, images: list[Image.Image] | list[Clip]
) -> Views:
    """Import a checkpoint; prompt, logits and greedy answers must be those of transformers."""
    theirs = AutoModelForImageTextToText.from_pretrained(source).eval()
    processor = AutoProcessor.from_pretrained(source)
    import_checkpoint(str(source), out, template="v1")
    model, views = load_model(out)
    style = get_template("v1")
    video = isinstance(images[0], Clip)
    mark, key = ("<video>", "pixel_values_videos") if video else ("<image>", "pixel_values")
    place = theirs.config.video_token_index if video else theirs.config.image_token_index
    said = style.question.format(text=f"{mark}\nWhat is in the picture?")
    text = f"{style.system}{said}{style.header}"
    answers = set()
    for picture in images:
        asked = ask(model, views, picture, "What is in the picture?")
        ids = asked.batch.ids.clone()
        ids[ids < 0] = place
        media = {"videos": [frames_of(picture)]} if video else {"images": picture}
        inputs = processor(**media, text=text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == ids.tolist(), picture.size
        inputs = {**inputs, key: asked.batch.views.reshape(inputs[key].shape)}
        logits = theirs(**inputs).logits[0]
        ours = model.llm.head()(model(asked.batch))
        assert (ours - logits).abs().max() <= 1e-4 * logits.abs().max(), picture.size
        generated = theirs.generate(
            **inputs, max_new_tokens=8, do_sample=False, eos_token_id=sorted(asked.stop_ids)
        )
        tokens = answer(model, asked).tokens[0]
        assert tokens == generated[0, len(ids) :].tolist(), picture.size
        answers.add(tuple(tokens))
    assert len(answers) > 3, "the pictures must matter"
    return views


def frames_of(clip: Clip) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in clip.frames])


def clips() -> list[Clip]:
    """Clips of one to nine frames, wide, high and square."""
    shown = []
    for count, size in zip((1, 2, 3, 5, 7, 9, 4), itertools.cycle(SIZES), strict=False):
        frames = [picture.resize(size) for picture in pictures()[:count]]
        shown.append(Clip(frames, [n / 2 for n in range(count)], count / 2))
    return shown


@pytest.mark.parametrize(
    ("tower", "lm", "pool"),
    [
        ("clip", "llama", ("average", 2)),
        ("clip", "qwen2", ("max", 2)),
        ("siglip", "mistral", ("average", 2)),
    ],
)
def test_an_imported_next_video_equals_transformers(
    tower: str, lm: str, pool: tuple[str, int], tmp_path: Path
) -> None:
    make_theirs(tmp_path / "theirs", tower, lm, tiles=True, pool=pool)
    views = assert_equal_to_transformers(tmp_path / "theirs", tmp_path / "ours", clips())
    assert isinstance(views, Frames) and (views.mode, views.stride) == pool
    again = assert_equal_to_transformers(tmp_path / "theirs", tmp_path / "again", pictures())
    assert isinstance(again, Frames)


def test_a_next_video_of_ours_goes_out_and_in_again(tmp_path: Path) -> None:
    make_theirs(tmp_path / "theirs", "clip", "llama", tiles=True, pool=("average", 2))
    import_checkpoint(str(tmp_path / "theirs"), tmp_path / "ours", template="v1")
    model, views = load_model(tmp_path / "ours")
    export_model(model, views, tmp_path / "out")
    model.llm.scale(2.0)
    export_model(model, views, tmp_path / "scaled")
    import_checkpoint(str(tmp_path / "scaled"), tmp_path / "again", template="v1")
    again, _ = load_model(tmp_path / "again")
    assert (
        again.llm.context == model.llm.context == 2 * load_model(tmp_path / "ours")[0].llm.context
    )
    with pytest.raises(ValueError, match="frames are pooled before the connector"):
        export_model(model, Frames(position="after", image=views.image), tmp_path / "never")
    with pytest.raises(ValueError, match="a quarter of a frame's features"):
        export_model(model, views.with_numbers(4, 3), tmp_path / "never")
    with pytest.raises(ValueError, match="videos have no newline"):
        export_model(model, Frames(newline="grid", image=views.image), tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("lm", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_an_imported_model_equals_transformers(tower: str, lm: str, tmp_path: Path) -> None:
    make_theirs(tmp_path / "theirs", tower, lm)
    views = assert_equal_to_transformers(tmp_path / "theirs", tmp_path / "ours", pictures())
    assert isinstance(views, Pad if tower == "clip" else Square)


@pytest.mark.parametrize(
    ("tower", "lm", "sizes"),
    [
        ("clip", "llama", [*SIZES, *MORE_SIZES]),
        ("clip", "mistral", SIZES),
        ("siglip", "qwen2", SIZES),
    ],
)
def test_an_imported_next_equals_transformers(tower: str, lm: str, sizes, tmp_path: Path) -> None:
    make_theirs(tmp_path / "theirs", tower, lm, tiles=True)
    images = pictures(sizes)
    views = assert_equal_to_transformers(tmp_path / "theirs", tmp_path / "ours", images)
    assert isinstance(views, AnyRes) and load_model(tmp_path / "ours")[0].newline.weight is not None


@pytest.mark.parametrize("ties", ["released", "transformers"])
def test_a_next_of_ours_goes_out_and_in_again(ties: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = {**LM, "vocab_size": 768, "model_type": "qwen3"}
    llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer")
    model = Llava(ClipEncoder(None, -2, False, False, TOWER), MLP, llm, newline=True).eval()
    views = AnyRes("1x2, 2x1, 2x2", ties=ties)
    export_model(model, views, tmp_path / "out")
    import_checkpoint(str(tmp_path / "out"), tmp_path / "again")
    again, same = load_model(tmp_path / "again")
    for size in [*SIZES, *MORE_SIZES]:
        view_spec = model.encoder.view_spec
        assert same.layout(size, view_spec) == views.layout(size, view_spec), size
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k][: len(ours[k])]) for k in ours)
    with pytest.raises(ValueError, match="spatial_unpad with a base view"):
        export_model(model, AnyRes("2x2", base=False), tmp_path / "other")


@pytest.mark.parametrize(("views", "pads"), [(Pad(), True), (Square(), False)])
def test_pixels_equal_those_of_transformers(views, pads: bool) -> None:
    theirs = LlavaImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=pads
    )
    view_spec = ClipEncoder(None, -2, False, False, TOWER).view_spec
    for picture in pictures():
        wanted = torch.from_numpy(np.stack(theirs(picture)["pixel_values"]))
        assert torch.equal(views.pixels(picture, view_spec), wanted), picture.size


def test_an_imported_model_is_asked_where_the_stages_of_an_experiment_are_off(
    imported: Path,
) -> None:
    found = Experiment.read("experiments/llava15.yaml", imported / "model.yaml")
    assert found.changed({"stages.align": None, "stages.instruct": None}).config["data"]["views"]


def test_out_and_in_again_is_the_identity(imported: Path, tmp_path: Path) -> None:
    model, views = load_model(imported)
    export_model(model, views, tmp_path / "out")
    import_checkpoint(str(tmp_path / "out"), tmp_path / "again")
    again, same = load_model(tmp_path / "again")
    assert type(same) is type(views)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    theirs = (tmp_path / "again" / "model.yaml").read_text().split("\n")
    for line, other in zip((imported / "model.yaml").read_text().split("\n"), theirs, strict=True):
        assert line == other or str(tmp_path) in other


@pytest.mark.parametrize("template", ["v0", "v1", "llava_llama_2", "chatml_direct", "plain"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_ours_goes_out_verified(template: str, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = {**LM, "vocab_size": 768, "model_type": "qwen3", "tie_word_embeddings": tied}
    llm = CausalLM(None, template, pretrained=False, config=config, tokenizer="asset:tokenizer")
    model = Llava(ClipEncoder(None, -2, True, False, TOWER), MLP, llm).eval()
    if template == "plain":
        with pytest.raises(ValueError, match="writes another prompt"):
            export_model(model, Pad(), tmp_path / "out")
        assert not any(tmp_path.iterdir())
        return
    export_model(model, Pad(), tmp_path / "out")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    rows = theirs.lm_head.weight[768:]
    assert theirs.config.text_config.vocab_size == 832 == len(theirs.lm_head.weight)
    assert torch.allclose(rows, llm.head().weight.mean(0).expand_as(rows))
    assert theirs.generation_config.eos_token_id == sorted(
        get_template(template).stop_ids(llm.tokenizer)
    )
    # The hub's names, which engines read: vLLM refuses those of transformers 5's own.
    parts = ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.")
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert all(name.startswith(parts) for name in names)
    import_checkpoint(str(tmp_path / "out"), tmp_path / "again")
    again, _ = load_model(tmp_path / "again")
    assert get_template(again.llm.template).answer == get_template(template).answer
    assert again.llm.tokenizer("a").input_ids == llm.tokenizer("a").input_ids


@pytest.mark.parametrize("template", ["v1", "mistral_instruct", "llava_llama_2", "qwen_1_5"])
def test_every_way_to_write_a_prompt_has_one_bos(template: str, tmp_path: Path) -> None:
    """In one step, in two, and as engines do, which add no special token to a chat."""
    config = {**LM, "vocab_size": 768, "model_type": "llama"}
    llm = CausalLM(None, template, pretrained=False, config=config, tokenizer="asset:tokenizer")
    model = Llava(ClipEncoder(None, -2, False, False, TOWER), MLP, llm).eval()
    export_model(model, Pad(), tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    turns = [("user", "What?"), ("assistant", "A car."), ("user", "Red?")]
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    wanted = get_template(template).prompt(
        [Turn(role, text) for role, text in turns], llm.tokenizer, [], "row"
    )
    assert wanted[0] == 1 and 1 not in wanted[1:2]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    one = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    two = processor(text=text)
    assert [*one["input_ids"]] == [*two["input_ids"]] == [wanted]
    assert processor.tokenizer(text, add_special_tokens=False).input_ids == wanted
    # No template of ours has words of a system's; they are refused, not written as an answer.
    told = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *chat]
    with pytest.raises(TemplateError, match="not on one of role system"):
        processor.apply_chat_template(told, add_generation_prompt=True)


def test_what_transformers_cannot_express_is_refused(tmp_path: Path) -> None:
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    config = {**LM, "model_type": "llama"}
    llm = CausalLM(None, "tokenizer", pretrained=False, config=config, tokenizer="asset:tokenizer")
    with pytest.raises(ValueError, match=r"TimmEncoder.*MLP of depth 2.*template 'tokenizer'"):
        export_model(Llava(encoder, Linear, llm), Pad(), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def made(**options: Any) -> Llava:
    torch.manual_seed(1)
    config = {**LM, "vocab_size": 768, "model_type": options.pop("kind", "llama")}
    llm = CausalLM(
        None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer", **options
    )
    return Llava(ClipEncoder(None, -2, False, False, TOWER), MLP, llm).eval()


def test_an_lm_of_bfloat16_is_verified_in_float32_and_written_as_it_is(tmp_path: Path) -> None:
    model = made(dtype="bfloat16")
    own = {name: each.clone() for name, each in model.llm.model.state_dict().items()}
    export_model(model, Pad(), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    norm = written["language_model.model.norm.weight"]
    assert norm.dtype == torch.bfloat16 and torch.equal(norm, own["model.norm.weight"])


def test_a_model_on_another_device_is_verified_on_the_cpu(tmp_path: Path, monkeypatch) -> None:
    model = made()
    export_model(model, Pad(), tmp_path / "out", verify=False)
    elsewhere, moved = deepcopy(model).to("meta"), []
    monkeypatch.setattr(elsewhere, "to", lambda *where: moved.append(where) or model)
    check(elsewhere, Pad(), tmp_path / "out")
    assert moved == [("cpu", torch.float32)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="exports a model that is on a GPU")
def test_a_model_on_a_gpu_is_exported(tmp_path: Path) -> None:
    model = made(dtype="bfloat16").to("cuda")
    export_model(model, Pad(), tmp_path / "out")
    wanted = made(dtype="bfloat16").llm.model.state_dict()["model.norm.weight"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["language_model.model.norm.weight"], wanted)


def test_an_output_layer_with_a_bias_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output layer of the LM \(phi\) has a bias"):
        export_model(made(kind="phi"), Pad(), tmp_path / "out", nearest=True)
    assert not any(tmp_path.iterdir())


class Halved(MLP):
    """An MLP on every second row of features."""

    def grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid[0] // 2, grid[1]


@pytest.mark.parametrize(
    ("connector", "views", "reason"),
    [
        (PixelShuffle, Pad(), "the connector is PixelShuffle; .* MLP of depth 2 and no other"),
        (partial(MLP, depth=3), Pad(), "the connector is MLP of depth 3; "),
        (Halved, Pad(), r"the connector \(Halved\) makes 2x4 features of 4x4, and its"),
        (MLP, Pad(pool=Pool(2)), r"it pools no pictures \(Pad: pool\)"),
        (MLP, AnyRes("1x2", pool=Pool(2)), r"it pools no pictures \(AnyRes: pool\)"),
    ],
)
def test_another_geometry_is_refused_by_name(connector, views, reason, tmp_path: Path) -> None:
    config = {**LM, "model_type": "llama"}
    llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer")
    model = Llava(ClipEncoder(None, -2, False, False, TOWER), connector, llm, newline=True)
    for nearest in (False, True):
        with pytest.raises(ValueError, match=reason):
            export_model(model, views, tmp_path / "out", nearest=nearest)


def test_the_nearest_class_is_written_when_asked(tmp_path: Path, capsys) -> None:
    make_theirs(tmp_path / "theirs", "clip", "llama", tiles=True, pool=("average", 2))
    import_checkpoint(str(tmp_path / "theirs"), tmp_path / "ours", template="v1")
    path = tmp_path / "ours" / "model.yaml"
    written = yaml.safe_load(path.read_text())
    views = written["data"]["views"]["init_args"]
    views |= {"mode": "bilinear", "position": "after", "newline": "grid", "stride": 3}
    views["image"]["init_args"] |= {"max_tiles": 2, "base": False}
    path.write_text(yaml.safe_dump(written))
    arguments = ["export", str(tmp_path / "ours"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(arguments)
    said = capsys.readouterr().err
    reasons = ["spatial_unpad", "a quarter of", "pooled before", "no newline", "With --nearest"]
    assert all(reason in said for reason in reasons) and not (tmp_path / "out").exists()
    main([*arguments, "--nearest"])
    said = capsys.readouterr().out
    assert said.count("NOT as it was trained") == 4
    import_checkpoint(str(tmp_path / "out"), tmp_path / "again")
    again, near = load_model(tmp_path / "again")
    assert (near.stride, near.mode, near.position, near.newlines) == (
        2,
        "average",
        "before",
        "no_token",
    )
    assert near.image.base and near.image.max_tiles is None
    ours = load_model(tmp_path / "ours")[0].state_dict()
    assert all(torch.equal(ours[key], value) for key, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"MLP of depth 2 and no other$"):  # no class is near
        model = load_model(tmp_path / "ours")[0]
        model.connector = Linear(TOWER["hidden_size"], LM["hidden_size"])
        export_model(model, near, tmp_path / "never", nearest=True)


def test_a_checkpoint_goes_out_without_an_import(released: Path, tmp_path: Path) -> None:
    main(["export", str(released), "--out", str(tmp_path / "out"), "--template", "v1"])
    theirs, ours = (load_file(path / "model.safetensors") for path in (released, tmp_path / "out"))
    kept = {our_name(name): value for name, value in theirs.items()}
    assert kept.keys() == {our_name(name) for name in ours}
    behind = "encoder.tower.encoder.layers.2."  # is never run, and written as zeros
    for name, value in ours.items():
        known = our_name(name)
        if known.startswith(behind) or "post_layernorm" in known:
            assert not value.any(), name
        else:
            assert torch.equal(value, kept[known]), name


def test_a_faulty_export_is_found_and_leaves_nothing(imported: Path, tmp_path: Path) -> None:
    model, views = load_model(imported)
    norm = model.llm.model.model.norm
    norm.register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(ValueError, match="logits differ from ours"):
        export_model(model, views, tmp_path / "out")
    assert not any(tmp_path.iterdir())
    export_model(model, views, tmp_path / "out", verify=False)
    with pytest.raises(FileExistsError, match="exists already"):
        export_model(model, views, tmp_path / "out")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("vision_tower.vision_model.pre_layrnorm.bias", "encoder.tower.pre_layrnorm.bias"),
        ("vision_tower.pre_layrnorm.bias", "encoder.tower.pre_layrnorm.bias"),
        ("model.vision_tower.pre_layrnorm.bias", "encoder.tower.pre_layrnorm.bias"),
        (
            "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
            "encoder.tower.pre_layrnorm.bias",
        ),
        ("multi_modal_projector.linear_2.weight", "connector.2.weight"),
        ("model.multi_modal_projector.linear_1.bias", "connector.0.bias"),
        ("model.mm_projector.0.weight", "connector.0.weight"),
        ("model.mm_projector.weight", "connector.weight"),
        ("language_model.model.layers.1.up.weight", "llm.model.model.layers.1.up.weight"),
        ("model.language_model.layers.1.up.weight", "llm.model.model.layers.1.up.weight"),
        ("model.layers.1.up.weight", "llm.model.model.layers.1.up.weight"),
        ("model.norm.weight", "llm.model.model.norm.weight"),
        ("language_model.lm_head.weight", "llm.model.lm_head.weight"),
        ("lm_head.weight", "llm.model.lm_head.weight"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("vision_tower.vision_model.embeddings.position_ids", None),
    ],
)
def test_names_of_all_layouts(theirs: str, ours: str | None) -> None:
    assert our_name(theirs) == ours


def test_names_that_belong_nowhere_are_all_listed() -> None:
    with pytest.raises(ValueError, match=r"box: 2 tensors belong to no part of ours:\n  a\.b\n  c"):
        our_names(["lm_head.weight", "c", "a.b"], "box")


def copy(released: Path, out: Path) -> dict[str, torch.Tensor]:
    out.mkdir()
    for path in released.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return load_file(out / "model.safetensors")


def test_missing_left_over_and_misshapen_tensors_are_named(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    # Clones, for what is saved over the file would else be read from it (safetensors 0.5 dies).
    tensors = {name: tensor.clone() for name, tensor in copy(released, folder).items()}
    changes = {
        "multi_modal_projector.linear_2.bias": None,
        "language_model.model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3),
        "vision_tower.encoder.layers.7.mlp.fc1.bias": torch.zeros(32),
    }
    messages = ["1 missing: 2.bias", "up_proj.weight [3, 3]", "1 unknown: encoder.layers.7.mlp"]
    for (name, value), message in zip(changes.items(), messages, strict=True):
        changed = {k: v for k, v in {**tensors, name: value}.items() if v is not None}
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(ValueError) as error:
            import_checkpoint(str(folder), tmp_path / "out", template="v1")
        assert message in str(error.value)
        assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


def test_shards_are_read_and_missing_ones_named(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    tensors = copy(released, folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(shards.values()):
        save_file({n: tensors[n] for n in names if shards[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    import_checkpoint(str(folder), tmp_path / "out", template="v1")
    # As transformers: the whole file counts where one lies beside shards of an older model.
    half = {name: (tensor / 2).contiguous() for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors")
    found = read_tensors(folder)
    assert all(torch.equal(found[name], half[name]) for name in names)
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 shards missing: model-00002-of-00002"):
        import_checkpoint(str(folder), tmp_path / "other", template="v1")
    index.unlink()
    # A projector beside the shards made the base LM of the fine-tuned one, without a word.
    torch.save({}, folder / "mm_projector.bin")
    lost = r"holds model-00001-of-00002\.safetensors and no model\.safetensors\.index\.json.*Fetch"
    with pytest.raises(FileNotFoundError, match=lost):
        import_checkpoint(str(folder), tmp_path / "other", template="v1")
    first = folder / "model-00001-of-00002.safetensors"
    first.rename(folder / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(FileNotFoundError, match=r"no pytorch_model\.bin\.index\.json"):
        read_tensors(folder)
    for name in ("pytorch_model-00001-of-00002.bin", "mm_projector.bin"):
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds none of"):
        read_tensors(folder)


def test_the_original_layout(imported: Path, tmp_path: Path) -> None:
    model, _ = load_model(imported)
    folder = tmp_path / "liuhaotian"
    folder.mkdir()
    model.llm.tokenizer.save_pretrained(folder)
    config = model.llm.model.config.to_dict() | {
        "model_type": "llava_llama",
        "mm_vision_tower": str(tmp_path / "clip"),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps(config))
    state = {f"model.mm_projector.{k}": v for k, v in model.connector.state_dict().items()}
    state |= model.llm.model.state_dict()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    torch.save(state, folder / "pytorch_model.bin")
    tower = ClipEncoder._classes()[1](model.encoder.whole)
    tower.load_state_dict(model.encoder.tower.state_dict(), strict=False)
    tower.save_pretrained(tmp_path / "clip")
    import_checkpoint(str(folder), tmp_path / "ours", template="v1")
    again, views = load_model(tmp_path / "ours")
    assert isinstance(views, Pad)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for aspect, message in [
        ("highres", "image_aspect_ratio 'highres' is not read yet"),
        ("anyres", "without image_grid_pinpoints"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": aspect}))
        with pytest.raises(ValueError, match=message):
            import_checkpoint(str(folder), tmp_path / "other", template="v1")
    state["model.image_newline"] = torch.randn(32)
    torch.save(state, folder / "pytorch_model.bin")
    config |= {
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "[(56, 112), (112, 56)]",
        "mm_patch_merge_type": "spatial_unpad",
    }
    (folder / "config.json").write_text(json.dumps(config))
    import_checkpoint(str(folder), tmp_path / "next", template="v1")
    again, views = load_model(tmp_path / "next")
    assert torch.equal(again.newline.weight, state["model.image_newline"])
    assert vars(views) == vars(AnyRes([[56, 112], [112, 56]], max_tiles=9))


def test_answer_and_chat_about_videos(
    imported: Path, small_videos: Path, tmp_path: Path, capsys
) -> None:
    """A model of pictures is asked about videos: frames, pooled."""
    out = tmp_path / "answers.jsonl"
    arguments = ["--images", str(small_videos / "videos"), "--out", str(out)]
    arguments += ["--max-new-tokens", "4", "--frames", "5"]
    main(["answer", str(imported), str(small_videos / "questions.jsonl"), *arguments])
    assert "a video is 5 frames, pooled by 2" in capsys.readouterr().out
    said = [json.loads(line) for line in out.read_text().splitlines()]
    asked = read_questions(small_videos / "questions.jsonl", small_videos / "videos")
    assert [row["question_id"] for row in said] == [int(question.id) for question in asked]
    model, views = load_model(imported)
    views = show_videos(model, views, 5, None)
    lines = iter([asked[0].prompt, ""])
    turns = talk(model, views, [asked[0].images[0]], 4, lambda _: next(lines))
    assert turns[1].text == said[0]["text"]
    with pytest.raises(ValueError, match=r"frames fit: take fewer"):
        show_videos(model, views, 100_000, 1)


def test_answer_and_chat(imported: Path, released: Path, tmp_path: Path, capsys) -> None:
    for number, picture in enumerate(pictures()[:3]):
        picture.save(tmp_path / f"{number}.png")
    questions = [
        {"question_id": f"q{n}", "image": f"{n % 3}.png", "text": f"What is {n}?"} for n in range(5)
    ]
    path, out = tmp_path / "questions.jsonl", tmp_path / "answers" / "a.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    arguments = ["--images", str(tmp_path), "--out", str(out), "--max-new-tokens", "6"]
    main(["answer", str(imported), str(path), *arguments])
    said = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["question_id"] for row in said] == [f"q{n}" for n in range(5)]
    # The checkpoint itself, without an import, gives the same answers.
    before = out.read_text().replace('"ours"', '"llava-hf"')
    out.unlink()
    main(["answer", str(released), str(path), *arguments, "--template", "v1"])
    assert out.read_text() == before
    model, views = load_model(imported)
    lines = iter(["What is 0?", "And then?", ""])
    turns = talk(model, views, [tmp_path / "0.png"], 6, lambda _: next(lines))
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2
    assert turns[1].text == said[0]["text"]
    out.unlink()
    with pytest.raises(SystemExit):
        main(["answer", str(tmp_path), str(path), *arguments])
    assert "config.json" in capsys.readouterr().err


def test_a_template_without_questions_is_not_asked(imported: Path, tmp_path: Path, capsys) -> None:
    """Different questions had the same answers, word for word."""
    pictures()[0].save(tmp_path / "a.png")
    asked = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "image": "a.png", "text": f"What is {n}?"} for n in range(2)]
    asked.write_text("".join(json.dumps(each | {"answer": "A"}) + "\n" for each in rows))
    chosen = ["--template", "plain", "--out", str(tmp_path / "out.jsonl")]
    shown = [str(asked), "--images", str(tmp_path), *chosen]
    for command in (
        ["answer", str(imported), *shown],
        ["caption", str(tmp_path), "--model", str(imported), *chosen],
        ["prefer", str(imported), *shown, "--temperature", "1"],
        ["chat", str(imported), "--template", "plain"],
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert capsys.readouterr().err.count("and not what is asked: take one that does") == 1
        (tmp_path / "out.jsonl.journal").unlink(missing_ok=True)
