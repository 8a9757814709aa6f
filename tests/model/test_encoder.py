import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.model.encoder import timm_tower
from llava_lab.model.encoder.base import Encoder
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.encoder.siglip import SiglipEncoder
from llava_lab.model.encoder.timm import TimmEncoder

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 29,
    "patch_size": 7,
}
VIT = {
    "name": "vit_tiny_patch16_224",
    "image_size": 48,
    "options": {"embed_dim": 48, "depth": 4, "num_heads": 3},
}
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub fail at once instead of after five attempts."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole CLIP and a whole SigLIP on disk, text towers included, as the hub has them."""
    root = tmp_path_factory.mktemp("towers")
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 9}
    text |= {"num_attention_heads": 2, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2}
    kinds: list[tuple[Any, str]] = [
        (transformers.CLIPModel, "clip"),
        (transformers.SiglipModel, "siglip"),
    ]
    for kind, name in kinds:
        torch.manual_seed(5)
        config = kind.config_class(text_config=text, vision_config=TOWER, projection_dim=16)
        model = kind(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        model.save_pretrained(root / name)
    return {"clip": root / "clip", "siglip": root / "siglip"}


def vit(**changes) -> TimmEncoder:
    return TimmEncoder(**{"pretrained": False, **VIT, **changes})


def pixels_for(encoder: Encoder, views: int = 2) -> torch.Tensor:
    side = encoder.view_spec.image_size
    return torch.randn(views, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_clip_gives_a_hidden_state(folders: dict[str, Path]) -> None:
    whole = transformers.CLIPVisionModel.from_pretrained(folders["clip"]).eval()
    for layer, cls in [(-5, True), (-2, False), (-1, True), (0, False), (1, True), (4, False)]:
        encoder = ClipEncoder(str(folders["clip"]), layer, cls).eval()
        pixels = pixels_for(encoder)
        state = whole(pixels, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(encoder(pixels).flatten(1, 2), state if cls else state[:, 1:])
        assert len(encoder.tower.encoder.layers) == (layer if layer >= 0 else 5 + layer)


def test_siglip_is_the_released_path(folders: dict[str, Path]) -> None:
    encoder = SiglipEncoder(str(folders["siglip"])).eval()
    whole = transformers.SiglipVisionModel.from_pretrained(folders["siglip"]).eval()
    del whole.encoder.layers[-1]
    state = whole(pixels_for(encoder), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(encoder(pixels_for(encoder)).flatten(1, 2), state)
    assert encoder.view_spec.grid == (4, 4) and state.shape[1] == 16


@pytest.mark.parametrize(
    ("layer", "block", "cls"), [(-4, 0, True), (-2, 2, False), (-1, 3, True), (3, 2, True)]
)
def test_timm_gives_a_blocks_output(layer: int, block: int, cls: bool, tmp_path: Path) -> None:
    options = VIT["options"] | {"reg_tokens": 2}
    torch.manual_seed(3)
    whole = timm.create_model(VIT["name"], img_size=48, **options).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    encoder = vit(
        layer=layer, cls=cls, options=options, weights=str(tmp_path / "whole.safetensors")
    ).eval()
    outputs = []
    whole.blocks[block].register_forward_hook(lambda _, __, output: outputs.append(output))
    whole(pixels_for(encoder))
    patches = outputs[0][:, 3:]  # behind CLS and two registers
    expected = torch.cat([outputs[0][:, :1], patches], 1) if cls else patches
    torch.testing.assert_close(encoder(pixels_for(encoder)).flatten(1, 2), expected)
    assert len(encoder.tower.blocks) == block + 1


def test_a_class_token_that_enters_after_the_blocks_goes_with_what_reads_it() -> None:
    class AsBefore1031(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1))
            self.cls_attn_blocks = nn.ModuleList([nn.Linear(1, 1)])

        def prune_intermediate_layers(self, *_: object, **__: object) -> None:
            self.cls_attn_blocks = nn.ModuleList()

    timm_tower.prune(model := AsBefore1031(), 0)
    assert not model.state_dict()
    xcit = TimmEncoder("xcit_nano_12_p16_224", pretrained=False)
    assert "cls_token" not in xcit.tower.state_dict()


ENCODERS = {
    "clip": lambda cls: ClipEncoder(None, -2, cls, False, TOWER),
    "siglip": lambda cls: SiglipEncoder(None, -2, cls, False, TOWER),
    "vit": lambda cls: vit(cls=cls),
    "vit, odd size": lambda cls: vit(cls=cls, image_size=50),
    "vit, distilled": lambda cls: vit(cls=cls, name="deit_tiny_distilled_patch16_224"),
    "eva": lambda cls: vit(cls=cls, name="eva02_tiny_patch14_224", image_size=42),
    "siglip of timm": lambda cls: vit(cls=cls, name="vit_base_patch16_siglip_224"),
    "resnet": lambda cls: TimmEncoder("resnet10t", -2, cls, False, 70),
    "convnext": lambda cls: TimmEncoder(
        "convnext_atto", -1, cls, False, 64, options={"depths": [1, 1, 1, 1], "dims": [8] * 4}
    ),
    "swin": lambda cls: TimmEncoder(
        "swin_tiny_patch4_window7_224", -1, cls, False, 70, options=SWIN
    ),
}
WITHOUT_CLS = ("siglip", "siglip of timm", "resnet", "convnext", "swin")


@pytest.mark.parametrize(
    ("name", "cls"),
    [(name, name not in WITHOUT_CLS) for name in ENCODERS] + [("clip", False), ("vit", False)],
)
def test_features_are_as_many_as_the_layout_counts(name: str, cls: bool) -> None:
    encoder = ENCODERS[name](cls)
    choices: list[Views] = [Square(), Square("squash"), Pad()]
    for views, size in zip(choices, [(60, 30), (31, 77), (50, 49)], strict=True):
        layout = views.layout(size, encoder.view_spec)
        features = encoder(views.pixels(Image.new("RGB", size), encoder.view_spec))
        assert features.shape == (1, *layout.blocks[0].encoded, encoder.width)
        assert layout.tokens == features[0, ..., 0].numel()
        assert features.isfinite().all()


@pytest.mark.parametrize("name", ["siglip", "siglip of timm", "convnext"])
def test_a_cls_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no CLS feature: set cls to false"):
        ENCODERS[name](True)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "convnext"])
def test_every_weight_that_is_kept_is_used(name: str) -> None:
    encoder = ENCODERS[name](False)
    encoder(pixels_for(encoder)).square().sum().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_features_have_the_type_of_the_weights(name: str) -> None:
    encoder = ENCODERS[name](True).to(torch.bfloat16)
    assert encoder(pixels_for(encoder)).dtype == torch.bfloat16


def test_paper_sizes_are_built_without_memory() -> None:
    with torch.device("meta"):
        clip = ClipEncoder("openai/clip-vit-large-patch14-336", pretrained=False, config=CLIP_L)
        of_timm = TimmEncoder("vit_large_patch14_clip_336.openai", pretrained=False)
        for encoder in (clip, of_timm):
            assert encoder(torch.empty(2, 3, 336, 336)).shape == (2, 24, 24, 1024)
            # 303,507,456 of the whole tower, less the last block and the final norm
            assert sum(p.numel() for p in encoder.parameters()) == 290_909_184
    assert clip.view_spec == of_timm.view_spec


def test_random_weights_come_from_the_seed_alone() -> None:
    for build in (ENCODERS["clip"], ENCODERS["convnext"]):
        states = []
        for drawn in (0, 3):
            torch.manual_seed(7)
            torch.rand(drawn)
            before = torch.get_rng_state()
            states.append(build(False).state_dict())
            assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_processor_beside_the_weights_says_the_colours(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    assert ClipEncoder(str(folders["clip"])).view_spec.mean == ClipEncoder.mean
    for file in folders["clip"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    files = {"processor_config.json": {"image_processor": colours}}
    files["preprocessor_config.json"] = colours
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
        view_spec = ClipEncoder(str(tmp_path)).view_spec
        assert view_spec.mean == (0.1, 0.2, 0.3) and view_spec.std == (0.4, 0.5, 0.6)
        (tmp_path / name).unlink()


def test_files_of_a_whole_and_of_a_cut_tower_load(folders: dict[str, Path], tmp_path: Path) -> None:
    source = ClipEncoder(str(folders["clip"]), cls=True)
    state = source.state_dict()
    save_file(state, tmp_path / "encoder.safetensors")
    save_file({f"encoder.{k}": v for k, v in state.items()}, tmp_path / "llava.safetensors")
    torch.save({"state_dict": source.tower.state_dict()}, tmp_path / "tower.pth")
    files = [tmp_path / name for name in ("encoder.safetensors", "llava.safetensors", "tower.pth")]
    for file in [*files, folders["clip"] / "model.safetensors"]:
        loaded = ClipEncoder(None, cls=True, config=TOWER, weights=str(file)).state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state | loaded)


def test_a_cut_timm_file_loads_at_another_image_size(tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = vit()
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    same, larger = (
        vit(image_size=side, weights=str(tmp_path / "a.safetensors")) for side in (48, 80)
    )
    assert larger.view_spec.grid == (5, 5) and larger(pixels_for(larger)).shape == (2, 5, 5, 48)
    for key, value in source.state_dict().items():
        assert torch.equal(same.state_dict()[key], value)
        assert torch.equal(larger.state_dict()[key], value) or key == "tower.pos_embed"
    assert "state_dict" not in larger.tower.pretrained_cfg


def with_changes(state: dict[str, torch.Tensor], change: str) -> dict[str, torch.Tensor]:
    key = next(key for key in sorted(state) if "mlp.fc1.weight" in key)
    if change == "missing":
        return {k: v for k, v in state.items() if k != key}
    if change == "unknown":
        return state | {key + "x": state[key].clone()}
    return state | {key: state[key][1:].clone()}


@pytest.mark.parametrize("change", ["missing", "unknown", "of another shape"])
def test_a_file_that_does_not_fit_is_refused(change: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for build in (lambda **more: ClipEncoder(None, config=TOWER, **more), vit):
        state = with_changes(build(pretrained=False).state_dict(), change)
        save_file(state, file)
        with pytest.raises(ValueError, match=rf"a\.safetensors.* 1 {change}: .*fc1\.weight"):
            build(weights=str(file))


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    save_file(vit().state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight \[48, 3, 16, 16\] for"):
        vit(options=VIT["options"] | {"patch_size": 8}, weights=str(tmp_path / "a.safetensors"))


def test_a_tensor_missing_from_a_folder_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(folders["clip"] / "config.json")
    state = load_file(folders["clip"] / "model.safetensors")
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: encoder\.layers\.1\.mlp\.fc1\.bias"):
        ClipEncoder(str(tmp_path))
    whole = (folders["clip"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or cut short"):
        ClipEncoder(str(tmp_path))


@pytest.mark.parametrize("layer", [-6, 5])
def test_a_layer_that_clip_has_not(layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer is {layer}, and with 4 blocks .* -5 to -1 .* 4"):
        ClipEncoder(None, layer, pretrained=False, config=TOWER)


@pytest.mark.parametrize("layer", [-5, 0, 5])
def test_a_layer_that_timm_has_not(layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer is {layer}, and with 4 blocks .* -4 to -1 .*1 to"):
        vit(layer=layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_tiny_patch16_242"}, "no model .*; nearest: vit_tiny_patch16_224"),
        ({"name": "vit_tiny_patch16_224.laion"}, "it has vit_tiny_patch16_224.augreg_in21k"),
        ({"options": {"dept": 4}}, "unexpected keyword argument 'dept'"),
        ({"options": {"img_size": 32}}, "options has img_size; leave it out, set image_size"),
        ({"options": {"num_classes": 0}}, "options has num_classes"),
        ({"name": "vit_small_patch16_36x1_224", "pretrained": True}, "No pretrained weights exist"),
    ],
)
def test_timm_mistakes_are_explained(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**arguments)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hiden_size": 32}, "no hiden_size; nearest: hidden_size"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int"),
        ({"hidden_size": 33, "num_attention_heads": 2}, "not a multiple"),
        ({"image_size": [224, 336]}, "views are square"),
        (None, "without `name` is built from `config`"),
    ],
)
def test_config_mistakes_are_explained(config: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipEncoder(None, pretrained=False, config=config)


def test_towers_are_not_taken_for_each_other(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a model of type siglip; ClipEncoder takes"):
        ClipEncoder(str(folders["siglip"]))
    with pytest.raises(ValueError, match=r"without a model's config\.json"):
        SiglipEncoder(str(tmp_path))
    with pytest.raises(ValueError, match="config has patch_size: 14, its weights are for 7"):
        ClipEncoder(str(folders["clip"]), config={"patch_size": 14})


def test_without_network_the_way_out_is_named() -> None:
    for name in ("openai/clip-vit-large-patch14-336", "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match=rf"{name}: not on .* `name` to a local folder"):
            ClipEncoder(name)
    with pytest.raises(FileNotFoundError, match=r"resnet10t: not on .* `weights` to a local file"):
        TimmEncoder("resnet10t")


MODELS = os.environ.get("LLAVA_LAB_MODELS")


@pytest.mark.skipif(not MODELS, reason="LLAVA_LAB_MODELS names no folder made by unpack.py")
def test_dinov2_equals_timms_own_interpolation() -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    file = str(Path(MODELS or "") / name / "model.safetensors")
    encoder = TimmEncoder(name, image_size=224, weights=file, cls=True).eval()
    whole = timm.create_model(
        name, pretrained=True, dynamic_img_size=True, pretrained_cfg_overlay={"file": file}
    ).eval()
    with torch.inference_mode():
        ((patches, prefix),) = whole.get_intermediate_layers(
            pixels_for(encoder, 1), [10], return_prefix_tokens=True
        )
        ours = encoder(pixels_for(encoder, 1))
    assert ours.shape == (1, 1, 257, 384) and encoder.view_spec.mean == (0.485, 0.456, 0.406)
    torch.testing.assert_close(ours[0], torch.cat([prefix, patches], 1), rtol=1e-3, atol=1e-3)
