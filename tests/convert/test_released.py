"""What a released checkpoint holds is converted or refused: configuration, template, files."""

import json
import os
import pickle
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig

from llava_lab.__main__ import main
from llava_lab.convert import templates
from llava_lab.convert.config import lm_config
from llava_lab.convert.files import find, read_json, read_tensors
from llava_lab.convert.hub import hub_parts
from llava_lab.convert.load import load_model
from llava_lab.convert.names import our_names
from llava_lab.convert.original import original_parts
from llava_lab.convert.processor import chat_template
from llava_lab.convert.released import import_checkpoint, read_released
from llava_lab.convert.templates import match
from llava_lab.data.geometry import ViewSpec
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.encoder.siglip import SiglipEncoder
from llava_lab.model.llm import CausalLM
from llava_lab.model.weights import locate, read_weights
from llava_lab.serve.models import show_videos

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
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
    "initializer_range": 0.3,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
}
# Keys beside the LM's, as the releases have them.
V15 = {
    "_name_or_path": "llava-v1.5-7b",
    "architectures": ["LlavaLlamaForCausalLM"],
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "max_length": 4096,
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "transformers_version": "4.31.0",
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
    "use_mm_proj": True,
}
V16 = V15 | {
    "attention_dropout": 0.0,
    "image_aspect_ratio": "anyres",
    "image_crop_resolution": 224,
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    "image_split_resolution": 224,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_vision_tower_lr": 2e-06,
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
    "unfreeze_mm_vision_tower": True,
}
# As LLaVA-Video's, whose code pools by 2 and has no key for it.
VIDEO = V16 | {
    "add_faster_video": False,
    "add_time_instruction": True,
    "faster_token_stride": 10,
    "force_sample": True,
    "mm_newline_position": "grid",
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": None,
}
TUNABLE = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
RELEASED = {
    "v1.5": V15,
    "v1.6-vicuna": V16,
    "v1.6-mistral": V16
    | {"model_type": "llava_mistral", "rope_theta": 1000000.0, "sliding_window": None},
    "v1.6-34b": V16 | {"attention_bias": False, "rope_theta": 5000000.0},
    "next-llama3": V16
    | {"model_type": "llava_llama", "rope_theta": 500000.0, "mm_tunable_parts": TUNABLE},
    "next-qwen": V16
    | {
        "model_type": "llava_qwen",
        "rope_theta": 1000000.0,
        "max_window_layers": 70,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "pos_skipping_range": 4096,
        "use_pos_skipping": False,
        "vision_tower_pretrained": None,
    },
    "next-video": V16
    | {
        "mm_resampler_type": "spatial_pool",
        "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_out_channels": 1024,
        "mm_spatial_pool_stride": 2,
        "patchify_video_feature": False,
        "rope_scaling": {"factor": 2.0, "type": "linear"},
    },
}
PLACES = ("encoder.tower.x", "connector.0.weight", "connector.2.weight", "llm.model.x")


def parts_of(tmp_path: Path, config: dict, names=(*PLACES, "newline.weight")) -> dict:
    return original_parts(tmp_path / "config.json", LM | config, dict.fromkeys(names))


@pytest.mark.parametrize("name", RELEASED)
def test_every_key_of_a_released_configuration_is_converted(name: str, tmp_path: Path) -> None:
    config = RELEASED[name]
    parts = parts_of(tmp_path, config)
    llm = parts["llm"]["init_args"]["config"]
    rope = llm["rope_parameters"]
    assert rope["rope_theta"] == config.get("rope_theta", 10000.0)
    scaled = config["rope_scaling"] or {"type": "default"}
    assert rope["rope_type"] == scaled["type"] and rope.get("factor") == scaled.get("factor")
    assert parts["llm"]["init_args"].get("max_length") == config.get("tokenizer_model_max_length")
    built = AutoConfig.for_model(**llm)
    for key in LM.keys() - {"torch_dtype", "use_cache"}:
        assert getattr(built, key) == LM[key], key
    assert getattr(built, "sliding_window", None) is None
    kind = {"v1.5": Pad, "next-video": Frames}.get(name, AnyRes)
    assert parts["views"]["class_path"].endswith(kind.__name__)
    if kind is Frames:
        arguments = parts["views"]["init_args"]
        assert (arguments["stride"], arguments["position"]) == (2, "before")
        assert arguments["newline"] == "no_token"


@pytest.mark.parametrize(
    ("tower", "resize"),
    [("openai/clip-vit-large-patch14-336", "crop"), ("google/siglip-so400m-patch14-384", "squash")],
)
def test_squares_are_those_of_the_towers_own_processor(
    tower: str, resize: str, tmp_path: Path
) -> None:
    """A SigLIP tower was shown the centre of pictures and frames; its processor squashes them."""
    square = {"mm_vision_tower": tower, "image_aspect_ratio": "square"}
    assert parts_of(tmp_path, V15 | square)["views"]["init_args"] == {"resize": resize}
    video = RELEASED["next-video"] | {"mm_vision_tower": tower}
    frame = parts_of(tmp_path, video)["views"]["init_args"]["frame"]
    assert frame["class_path"].endswith(".Square") and frame["init_args"] == {"resize": resize}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, {}),
        ({"mm_spatial_pool_stride": 2}, {}),
        ({"add_time_instruction": None, "mm_newline_position": None}, {"newline": "one_token"}),
        ({"mm_pooling_position": "before"}, {"position": "before"}),
        ({"mm_patch_merge_type": "flat"}, {"newline": "no_token"}),
    ],
)
def test_no_key_of_videos_is_lost_where_their_stride_is_null(
    changes: dict, shown: dict, tmp_path: Path
) -> None:
    """Such a model was read as one of pictures, and shown videos as none was trained on."""
    views = parts_of(tmp_path, VIDEO | changes)["views"]
    assert views["class_path"].endswith(".Frames")
    usual = {"stride": 2, "mode": "bilinear", "position": "after", "newline": "grid"}
    timed = {"time_instruction": "add_time_instruction" not in changes}
    found = views["init_args"]
    assert {key: found[key] for key in (*usual, *timed)} == usual | timed | shown
    assert found["image"]["class_path"].endswith(".AnyRes")


@pytest.mark.parametrize("key", ["add_time_instruction", "mm_newline_position"])
def test_one_key_of_videos_is_enough(key: str, tmp_path: Path) -> None:
    views = parts_of(tmp_path, V16 | {key: VIDEO[key]})["views"]
    assert views["class_path"].endswith(".Frames")
    assert parts_of(tmp_path, V16 | {key: None})["views"]["class_path"].endswith(".AnyRes")


def test_tiles_without_newlines_are_not_scaled_down(tmp_path: Path) -> None:
    """As in the released code, where anyres_max is read beside `unpad` alone."""
    for merge, most in (("spatial_unpad", 9), ("spatial", None)):
        changes = {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": merge}
        assert parts_of(tmp_path, V16 | changes)["views"]["init_args"]["max_tiles"] == most


@pytest.mark.parametrize(
    ("encoder", "views", "resize"),
    [
        (ClipEncoder, Pad(), "crop"),
        (SiglipEncoder, Pad(upright=True), "squash"),
        (SiglipEncoder, AnyRes("1x2"), "squash"),
        (SiglipEncoder, Square("crop"), "crop"),
    ],
)
def test_frames_for_a_model_of_pictures_are_squares_as_it_knows_them(
    encoder: type, views: Views, resize: str
) -> None:
    spec = ViewSpec(56, (4, 4), False, encoder.mean, encoder.std)
    model = SimpleNamespace(encoder=encoder, view_spec=spec, llm=SimpleNamespace(context=4096))
    shown = show_videos(model, views, None, None)
    assert shown.image is views and shown.frame.upright == views.upright
    assert isinstance(shown.frame, Square) and shown.frame.resize == resize


def test_frames_a_second_are_said(capsys: pytest.CaptureFixture) -> None:
    spec = ViewSpec(56, (4, 4), False, ClipEncoder.mean, ClipEncoder.std)
    model = SimpleNamespace(view_spec=spec, llm=SimpleNamespace(context=4096))
    show_videos(model, Frames(8, fps=1.0), None, None)
    said = "a video is 1 frames a second and at most 8 frames, pooled by 2"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mm_use_im_start_end", True),
        ("sep_image_conv_front", True),
        ("mm_resampler_type", "qformer"),
        ("mm_projector_type", "pooler"),
        ("mm_projector_type", "mlp3x_gelu"),
        ("mm_projector_type", 2),
        ("mm_vision_select_feature", "slicefour_patch"),
        ("mm_vision_select_layer", "-2"),
        ("mm_patch_merge_type", "unheard_of"),
        ("image_aspect_ratio", "highres"),
        ("image_aspect_ratio", "pad"),
        ("image_grid_pinpoints", "[[[["),
        ("image_grid_pinpoints", [5]),
        ("mm_spatial_pool_mode", "conv"),
        ("mm_spatial_pool_stride", 4),
        ("mm_pooling_position", "beside"),
        ("mm_newline_position", "word"),
        ("add_time_instruction", "yes"),
        ("add_faster_video", True),
        ("mm_vision_tower", None),
        ("mm_of_tomorrow", 3),
        ("rope_of_tomorrow", {"factor": 2}),
        ("rope_scaling", {"type": "unheard_of", "factor": 2.0}),
        ("rope_scaling", "linear"),
        ("rope_theta", "big"),
        ("quantization_config", {"load_in_4bit": True}),
        ("hidden_size", [32]),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", "four"),
        ("tokenizer_model_max_length", "long"),
        ("model_type", "llava_mpt"),
        ("model_type", ["llava"]),
    ],
)
def test_what_is_not_converted_is_refused_by_name(key: str, value, tmp_path: Path) -> None:
    config = RELEASED["v1.6-mistral"] | {"mm_spatial_pool_stride": 2, key: value}
    with pytest.raises(ValueError, match=rf"config\.json.*{key}"):
        parts_of(tmp_path, config)


def test_a_trained_tower_that_is_not_there_is_refused(tmp_path: Path) -> None:
    names = [name for name in PLACES if not name.startswith("encoder")]
    for key in ({"unfreeze_mm_vision_tower": True}, {"mm_tunable_parts": TUNABLE}):
        with pytest.raises(ValueError, match="holds no tensor of it"):
            parts_of(tmp_path, V15 | key, names)
    assert parts_of(tmp_path, V15, names)["encoder"]["init_args"]["name"]


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"mm_tunable_parts": "mm_mlp_adapter,mm_language_model"}, "mm_tunable_parts"),
        ({"tune_mm_mlp_adapter": False}, "tune_mm_mlp_adapter: false"),
        ({"mm_tunable_parts": "mm_mlp_adapter"}, None),
        ({"tune_mm_mlp_adapter": True}, None),
        ({"freeze_backbone": True}, None),
    ],
)
def test_a_trained_lm_that_is_not_there_is_refused(
    keys: dict, trained: str | None, tmp_path: Path
) -> None:
    """Its base LM was imported in its place, without a word."""
    names = [name for name in PLACES if name.startswith("connector")]
    if trained is None:
        assert parts_of(tmp_path, V15 | keys, names)["llm"]["init_args"]["name"]
        return
    with pytest.raises(ValueError, match=rf"{trained} says .* LM was trained.*Fetch all weights"):
        parts_of(tmp_path, V15 | keys, names)
    parts_of(tmp_path, V15 | keys)


def test_two_values_of_one_thing_are_refused() -> None:
    both = LM | {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
    with pytest.raises(
        ValueError, match=r"rope_theta is 1000000\.0, and 10000\.0 in rope_parameters"
    ):
        lm_config(both, "llama", "config.json")


def write_original(folder: Path, kind: str, lm: str, **more) -> None:
    """A random checkpoint of the original layout, with a tower beside it."""
    torch.manual_seed(0)
    usual = {"mm_vision_tower": str(folder / "clip"), "rope_theta": 1e6, "model_type": kind}
    config = LM | V15 | usual | more
    values = {key: value for key, value in config.items() if key in LM or key == "rope_theta"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(lm, **values)).float()
    state = model.state_dict()
    connector = MLP(TOWER["hidden_size"], LM["hidden_size"]).state_dict()
    state |= {f"model.mm_projector.{name}": value for name, value in connector.items()}
    folder.mkdir(parents=True)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(locate("asset:tokenizer")).save_pretrained(folder)
    tower = ClipEncoder._classes()[1](CLIPVisionConfig(**TOWER))
    tower.save_pretrained(folder / "clip")


@pytest.mark.parametrize(
    ("kind", "lm"), [("llava", "llama"), ("llava_mistral", "mistral"), ("llava_qwen", "qwen2")]
)
@torch.no_grad()
def test_far_positions_of_the_original_layout_equal_transformers(
    kind: str, lm: str, tmp_path: Path
) -> None:
    """The configuration is of version 4: a theta of 10,000 in place of 1e6 shows far back."""
    write_original(tmp_path / "theirs", kind, lm, image_aspect_ratio="pad")
    import_checkpoint(str(tmp_path / "theirs"), tmp_path / "ours", template="v1")
    model, _ = load_model(tmp_path / "ours")
    config = read_json(tmp_path / "theirs" / "config.json")
    values = {key: value for key, value in config.items() if key in LM or key == "rope_theta"}
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(lm, **values)).float().eval()
    state = torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True)
    theirs.load_state_dict({k: v for k, v in state.items() if "mm_projector" not in k})
    ids = torch.randint(4, 700, (800,)).tolist()
    ours = model.llm.head()(
        model(Batch.pack([EncodedSample([Segment(ids, ids)], None, [], "row")]))
    )
    logits = theirs(torch.tensor([ids])).logits[0]
    assert (ours - logits).abs().max() <= 1e-4 * logits.abs().max()


def hub_config(**changes) -> dict:
    """As llava-hf's: the LM's configuration holds what version 4 did not take for granted."""
    text = {
        "model_type": "mistral",
        "rope_theta": 1e6,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
    }
    text |= {"max_position_embeddings": 32768, "torch_dtype": "bfloat16", "vocab_size": 32064}
    tower = {**TOWER, "model_type": "clip_vision_model", "projection_dim": 768, "vocab_size": 32000}
    usual = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": [[56, 112]],
        "image_token_index": 32000,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": tower,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        usual[part] = {**usual[part], inner: value} if inner else value
    return usual


PROCESSOR = {
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "image_grid_pinpoints": [[56, 112]],
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "resample": 3,
    "size": {"shortest_edge": 56},
}
SQUASH = {"size": {"height": 56, "width": 56}, "do_center_crop": None, "crop_size": None}


def with_processor(folder: Path, name: str = "preprocessor_config.json", **changes) -> Path:
    path = folder / name
    path.write_text(json.dumps(PROCESSOR | changes))
    return path


def test_a_sparse_configuration_of_the_hub_is_filled_as_version_4_did(tmp_path: Path) -> None:
    with_processor(tmp_path)
    llm = hub_parts(tmp_path / "config.json", hub_config())["llm"]["init_args"]["config"]
    built = AutoConfig.for_model(**llm)
    assert built.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert built.sliding_window is None and built.rms_norm_eps == 1e-5
    # What version 4 left out of a Mistral's.
    assert (built.hidden_size, built.intermediate_size, built.num_hidden_layers) == (
        4096,
        14336,
        32,
    )
    assert (built.num_key_value_heads, built.tie_word_embeddings) == (8, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"of_tomorrow": 1},
        {"text_config__of_tomorrow": 1},
        {"vision_config__of_tomorrow": 1},
        {"text_config__rope_scaling": {"type": "linear"}},
        {"text_config__hidden_size": "wide"},
        {"text_config": [1]},
        {"vision_config": "clip"},
        {"vision_config__num_channels": 4},
        {"quantization_config": {"bits": 4}},
        {"text_config__quantization_config": {"bits": 4}},
        {"vision_feature_layer": [-2, -5]},
        {"vision_feature_select_strategy": "half"},
        {"vision_config__model_type": "siglip_vision_model"},
        {"projector_hidden_act": "relu"},
        {"model_type": "llava_onevision"},
    ],
)
def test_what_the_hubs_configuration_says_otherwise_is_refused(
    changes: dict, tmp_path: Path
) -> None:
    with_processor(tmp_path)
    hub_parts(tmp_path / "config.json", hub_config())
    with pytest.raises(ValueError, match=r"config\.json"):
        hub_parts(tmp_path / "config.json", hub_config(**changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_std", "narrow"),
        ("resample", 2),
        ("size", {"shortest_edge": 224}),
        ("size", [56, 56]),
        ("crop_size", 57),
        ("do_center_crop", False),
        ("do_normalize", False),
        ("rescale_factor", 1.0),
        ("image_grid_pinpoints", [[112, 56]]),
    ],
)
def test_pictures_that_are_prepared_otherwise_are_refused(key: str, value, tmp_path: Path) -> None:
    with_processor(tmp_path)
    hub_parts(tmp_path / "config.json", hub_config())
    with_processor(tmp_path, **{key: value})
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: {key} is "):
        hub_parts(tmp_path / "config.json", hub_config())
    # The frames of a video have a processor of their own.
    with_processor(tmp_path)
    with_processor(tmp_path, "video_preprocessor_config.json", **{key: value})
    with pytest.raises(ValueError, match=rf"video_preprocessor_config\.json: {key} is "):
        hub_parts(tmp_path / "config.json", NEXT_VIDEO)


LLAVA = {key: value for key, value in hub_config(model_type="llava").items() if "image_" not in key}
NEXT_VIDEO = hub_config(model_type="llava_next_video")


def resize_of(folder: Path, config: dict) -> str:
    views = hub_parts(folder / "config.json", config)["views"]["init_args"]
    return views.get("frame", {"init_args": views})["init_args"]["resize"]


@pytest.mark.parametrize("config", [LLAVA, NEXT_VIDEO])
def test_a_square_is_cropped_or_squashed_as_the_processor_says(
    config: dict, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither .* nor processor_config\.json .* Fetch"):
        resize_of(tmp_path, config)
    with_processor(tmp_path)
    assert resize_of(tmp_path, config) == "crop"
    with_processor(tmp_path, size=56, crop_size=56)
    assert resize_of(tmp_path, config) == "crop"
    with_processor(tmp_path, **SQUASH)
    assert resize_of(tmp_path, config) == "squash"
    with_processor(tmp_path, size=224)
    with pytest.raises(ValueError, match=r"size is {'shortest_edge': 224}, and the model sees by"):
        resize_of(tmp_path, config)
    with_processor(tmp_path, size=None)
    with pytest.raises(ValueError, match=r"config\.json: has no size, which says whether"):
        resize_of(tmp_path, config)
    kinds = {"image_processor": PROCESSOR | SQUASH, "video_processor": PROCESSOR | SQUASH}
    (tmp_path / "processor_config.json").write_text(json.dumps(kinds))
    assert resize_of(tmp_path, config) == "squash", "the file that transformers reads first"


@pytest.mark.parametrize(
    ("kind", "pads"),
    [("LlavaImageProcessorFast", True), ("CLIPImageProcessor", False), (None, True)],
)
def test_only_the_processor_of_llava_pads(kind: str | None, pads: bool, tmp_path: Path) -> None:
    """CLIP's takes `do_pad` and crops all the same."""
    with_processor(tmp_path, do_pad=True, image_processor_type=kind)
    views = hub_parts(tmp_path / "config.json", LLAVA)["views"]
    assert views["class_path"].endswith(".Pad" if pads else ".Square")


def test_two_matrices_where_one_is_said_are_refused(tmp_path: Path) -> None:
    write_original(tmp_path / "theirs", "llava", "llama")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(read_json(path) | {"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match="tie_word_embeddings is true"):
        read_released(tmp_path / "theirs", "v1")
    with pytest.raises(ValueError, match="are one tensor of ours"):
        our_names(["lm_head.weight", "language_model.lm_head.weight"], "box")


# Templates

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "(('<<SYS>>\\nBe brief.\\n<</SYS>>\\n\\n') if loop.first else '') + message['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def with_template(folder: Path, tokenizer, text: str | list) -> Path:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": text}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("text", [CHATML, QWEN.replace("helpful", "kind"), LLAMA_2])
def test_a_template_that_only_resembles_is_not_taken(
    text: str, byte_tokenizer, llama_tokenizer, tmp_path: Path
) -> None:
    tokenizer = llama_tokenizer if text is LLAMA_2 else byte_tokenizer
    folder = with_template(tmp_path / "theirs", tokenizer, text)
    with pytest.raises(ValueError, match=r"none of ours does to the letter\. Choose by --template"):
        match(folder, tokenizer)


def test_a_template_that_writes_the_same_in_other_words_is_taken(
    byte_tokenizer, tmp_path: Path
) -> None:
    named = [{"name": "rag", "template": CHATML}, {"name": "default", "template": QWEN}]
    for number, text in enumerate((QWEN, named)):
        folder = with_template(tmp_path / str(number), byte_tokenizer, text)
        assert match(folder, byte_tokenizer) == ("qwen_1_5", "tokenizer_config.json")


@pytest.mark.parametrize("name", ["v0", "llava_v1", "llava_llama_2", "mistral_instruct"])
def test_our_own_template_comes_back(name: str, llama_tokenizer, tmp_path: Path) -> None:
    text = chat_template(name, llama_tokenizer)
    assert match(with_template(tmp_path / "out", llama_tokenizer, text), llama_tokenizer)[0] == name


@pytest.mark.parametrize("doubled", [False, True])
def test_a_mark_that_is_the_beginning_of_sequence_token_is_put_once(
    doubled: bool, byte_tokenizer, tmp_path: Path
) -> None:
    """As of SmolLM2, whose token that begins a sequence is ChatML's mark, and which adds none."""
    tokenizer = deepcopy(byte_tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    text = chat_template("qwen_1_5", tokenizer)
    assert text.startswith('{{ "<|im_start|>system')
    if doubled:
        text = text.replace('{{ "', '{{ "<|im_start|>', 1)
    assert templates.opens_with_bos(text, tokenizer.bos_token) is doubled
    assert templates.opens_with_bos("{{ bos_token + 'a' }}", tokenizer.bos_token)
    folder = with_template(tmp_path / "out", tokenizer, text)
    if doubled:
        with pytest.raises(ValueError, match="none of ours does to the letter"):
            match(folder, tokenizer)
    else:
        assert match(folder, tokenizer)[0] == "qwen_1_5"


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ ('a' * 9999999999)|length }}",
    ],
)
def test_a_template_that_does_more_than_write_is_stopped(
    text: str, llama_tokenizer, tmp_path: Path, monkeypatch
) -> None:
    quicker = templates.PROGRAM.replace("(5, 5)", "(2, 2)")
    assert quicker != templates.PROGRAM
    monkeypatch.setattr(templates, "PROGRAM", quicker)
    folder = with_template(tmp_path / "theirs", llama_tokenizer, text)
    with pytest.raises(ValueError, match="it does more than write"):
        match(folder, llama_tokenizer)


def test_the_template_is_named_and_an_unknown_one_refused(
    byte_tokenizer, tmp_path: Path, capsys
) -> None:
    write_original(tmp_path / "theirs", "llava_qwen", "qwen2")
    with pytest.raises(ValueError, match="no template 'v2'; nearest: v"):
        import_checkpoint(str(tmp_path / "theirs"), tmp_path / "out", "v2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    with_template(tmp_path / "theirs", tokenizer, chat_template("v1", tokenizer))
    import_checkpoint(str(tmp_path / "theirs"), tmp_path / "out")
    said = capsys.readouterr().out
    assert "template v1: it writes what the checkpoint's tokenizer_config.json writes" in said


# Files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9976578928\n"


class Call:
    """A pickle that runs a command when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def one_message(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and "Traceback" not in said
    return said


def test_every_damaged_checkpoint_ends_in_one_message(tmp_path: Path, capsys) -> None:
    source = tmp_path / "theirs"
    write_original(source, "llava", "llama")
    weights, index = source / "pytorch_model.bin", source / "model.safetensors.index.json"
    run = tmp_path / "was_run"
    state = torch.load(weights, weights_only=True)
    capsys.readouterr()
    key = "model.norm.weight"
    files = {
        "a pointer of Git LFS": (weights, POINTER),
        "no file of weights (it is no file of torch)": (weights, b"<html>Not found</html>"),
        "would be run to be read": (weights, pickle.dumps(Call(run), protocol=2)),
        "holds a list, not tensors": (weights, [torch.zeros(2)]),
        "1 others: step (int)": (weights, state | {"step": 3}),
        "no file of weights ([Errno": (weights, weights.read_bytes()[:5000]),
        f"1 with NaN or infinite values: {key}": (
            weights,
            state | {key: torch.full((32,), np.nan)},
        ),
        f"1 quantized: {key} (torch.int8)": (weights, state | {key: state[key].to(torch.int8)}),
        f"1 of another type: {key} (torch.int64)": (weights, state | {key: state[key].long()}),
        "weight_map, which says what shard": (index, b"{}"),
        "is []": (index, b'{"weight_map": []}'),
        "a shard is a file beside the index": (index, b'{"weight_map": {"a": "../b"}}'),
        "1 shards missing: b.bin": (index, b'{"weight_map": {"a": "b.bin"}}'),
        "nested too deeply": (source / "config.json", b"[" * 100_000),
        "not JSON": (source / "config.json", b"{'a': 1}"),
        "holds list, not an object": (source / "config.json", b"[]"),
        "bos_token is [1], not str or dict": (
            source / "tokenizer_config.json",
            b'{"bos_token":[1]}',
        ),
        "tokenizer.json: not JSON": (source / "tokenizer.json", b"{"),
        "no tokenizer can be made": (source / "tokenizer.json", b'{"model": 5}'),
        "tokenizer.json: a pointer": (source / "tokenizer.json", POINTER),
        "tokenizer.json: not text": (source / "tokenizer.json", b"\xff\xfe"),
    }
    for message, (path, content) in files.items():
        before = path.read_bytes() if path.is_file() else None
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        out = tmp_path / "out"
        said = one_message(capsys, "import", str(source), "--out", str(out), "--template", "v1")
        assert message in said, f"{message} != {said}"
        assert (
            "weights_only" not in said
            and "trust" not in said
            and not out.exists()
            and not run.exists()
        )
        path.write_bytes(before) if before is not None else path.unlink()
    main(["import", str(source), "--out", str(out), "--template", "v1"])


def test_an_adapter_of_lora_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "vicuna-7b"}')
    for read in (find, lambda name: CausalLM(name, "v1")):
        with pytest.raises(ValueError, match=r"not a whole model\. Merge it"):
            read(str(tmp_path))


def test_a_tensor_of_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1), name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    shards = {"x": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match=r"b\.safetensors: 1 tensors that the index has elsewhere"):
        read_tensors(tmp_path)


def test_weights_of_other_trainers_are_found_under_their_key(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pth")
    assert torch.equal(read_weights(tmp_path / "a.pth")["a"], torch.ones(2))


def test_what_transformers_loads_by_itself_is_checked_too(tmp_path: Path) -> None:
    config = {**LM, "model_type": "llama"}
    del config["torch_dtype"]
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float()
    llm.save_pretrained(tmp_path / "lm")
    ClipEncoder._classes()[1](CLIPVisionConfig(**TOWER)).save_pretrained(tmp_path / "clip")
    for folder, build in (
        ("lm", lambda: CausalLM(str(tmp_path / "lm"), "v1", tokenizer="asset:tokenizer")),
        ("clip", lambda: ClipEncoder(str(tmp_path / "clip"))),
    ):
        build()
        path = tmp_path / folder / "model.safetensors"
        good = load_file(path)
        key = next(name for name, value in good.items() if "norm" in name and value.ndim == 1)
        for value, message in (
            (torch.full_like(good[key], torch.inf), "NaN or infinite"),
            (good[key].to(torch.int8), "quantized"),
        ):
            save_file(good | {key: value}, path, {"format": "pt"})
            with pytest.raises(ValueError, match=message):
                build()


def test_code_that_comes_with_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'was_run')!r})")
    with pytest.raises(ValueError, match=r"model\.llm\.name: cannot load"):
        CausalLM(str(tmp_path), "v1")
    assert not (tmp_path / "was_run").exists()


def test_a_tower_that_cannot_be_made_is_one_message() -> None:
    for change in ({"hidden_act": "x"}, {"num_hidden_layers": 10**9}, {"hidden_size": -1}):
        with pytest.raises(ValueError, match=r"tower|num_hidden_layers is 1000000000"):
            ClipEncoder(None, pretrained=False, config={**TOWER, **change})


def test_a_panic_of_the_tokenizers_library_is_one_message(tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(locate("asset:tokenizer")).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = read_json(path)
    found["model"]["continuing_subword_prefix"] = "a" * 3000
    path.write_text(json.dumps(found))
    config = {**LM, "model_type": "llama"}
    del config["torch_dtype"]
    llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer=str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.llm\.tokenizer: cannot load"):
        assert llm.tokenizer


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", [1]),
        ("num_attention_heads", 0),
        ("num_hidden_layers", 10**9),
        ("rope_parameters", 5),
        ("hidden_act", "x"),
    ],
)
def test_an_lm_that_cannot_be_made_is_one_message(key: str, value) -> None:
    config = {**LM, "model_type": "llama", key: value}
    del config["torch_dtype"]
    with pytest.raises(ValueError, match=r"model\.llm\.config"):
        CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer")
