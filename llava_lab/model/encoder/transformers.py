"""4. Encoder: pixels [n, 3, s, s] -> patch features of a tower of transformers."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from llava_lab.data.geometry import ViewSpec
from llava_lab.model.encoder.base import Encoder
from llava_lab.model.encoder.tower import (
    depth_of,
    first_line,
    nearest,
    refuse_depth,
    tensors_of,
    unreachable,
)
from llava_lab.model.weights import (
    check_values,
    few,
    locate,
    misfit,
    read_weights,
    refuse_quantized,
    seeded,
)

# transformers and timm take seconds to import: each is imported by the encoders that need it.


class TransformersEncoder(Encoder):
    """A vision tower of transformers; `ClipEncoder` and `SiglipEncoder` say which.

    Args:
        name: Hub id or local folder of the tower, alone or with its text tower, which is not
            loaded. May be null where `config` says everything.
        layer: Entry of the hidden states [embeddings, block 1, ..., block L] to take: -2 is the
            output of the last block but one, -1 that of the last, both without the final norm.
            Blocks after it are neither built nor run.
        cls: Keep the CLS feature before the patches.
        pretrained: Load the weights of `name`; false draws random ones.
        config: Values of the tower's configuration. Without pretrained weights they are the
            architecture and `name` is not read; with them they must agree with theirs.
        weights: A .safetensors, .bin, .pt or .pth file to load in place of the weights of `name`.
    """

    family: ClassVar[str]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    has_cls: ClassVar[bool]
    # Weights and configuration count by what they are, wherever they came from.
    idle: ClassVar[tuple[str, ...]] = ("name", "weights")

    def __init__(
        self,
        name: str | None,
        layer: int = -2,
        cls: bool = False,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
    ):
        super().__init__()
        label = name or f"a {self.family} tower"
        if cls and not self.has_cls:
            raise ValueError(f"{label} has no CLS feature: set cls to false")
        self.cls, self.layer = cls, layer
        download = pretrained and weights is None
        whole = self.whole = self._settings(name, config, download)
        kept = deepcopy(whole)
        kept.num_hidden_layers = depth_of(layer, whole.num_hidden_layers, 0, label)
        kept.vision_use_head = False  # SigLIP's pooling head; CLIP's configuration ignores it
        if download:
            self.tower = self._download(label, kept)
        else:
            with seeded("encoder"):
                self.tower = self._built(kept)
        self.tower.post_layernorm = nn.Identity()
        if weights is not None:
            self._load(weights, whole)
        self.width = kept.hidden_size
        rows = kept.image_size // kept.patch_size
        mean, std = self._colours(name if download or config is None else None)
        self.view_spec = ViewSpec(kept.image_size, (rows, rows), cls, mean, std)

    @classmethod
    @abstractmethod
    def _classes(cls) -> tuple[Any, Any]:
        """Configuration and model class of the family."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [n, h, w, d] of views [n, 3, s, s], or one row with the CLS feature."""
        hidden = self.tower(pixels.to(self.tower.dtype)).last_hidden_state
        features = hidden[:, 1:] if self.has_cls and not self.cls else hidden
        return features.unflatten(1, self.view_spec.encoded)

    def _settings(self, name: str | None, config: dict[str, Any] | None, download: bool) -> Any:
        """The configuration of the whole tower."""
        if download or config is None:
            if name is None:
                raise ValueError(
                    f"a {self.family} tower without `name` is built from `config`, with "
                    "pretrained: false or from a `weights` file"
                )
            settings = self._published(name)
            for key, value in (config or {}).items():
                if getattr(settings, key, None) != value:
                    raise ValueError(
                        f"{name}: config has {key}: {value}, its weights are for "
                        f"{getattr(settings, key, None)}. Drop the key, or set pretrained to false"
                    )
        else:
            settings = self._given(config)
        for key in ("image_size", "patch_size"):
            if not isinstance(getattr(settings, key), int):
                raise ValueError(f"{name}: {key} is {getattr(settings, key)}; views are square")
        return settings

    def _given(self, config: dict[str, Any]) -> Any:
        """The configuration that these values make."""
        from huggingface_hub.errors import StrictDataclassError

        settings = self._classes()[0]
        known = list(settings.__dataclass_fields__)
        for key in config:
            if key not in known:
                raise ValueError(
                    f"config of a {self.family} tower has no {key}; nearest: {nearest(key, known)}"
                )
        refuse_depth(config)
        try:
            return settings(**config)
        except StrictDataclassError as error:
            message = " ".join(str(error).split())
            raise ValueError(f"config of a {self.family} tower: {message}") from error

    def _built(self, settings: Any) -> Any:
        """The tower of a configuration, with random weights."""
        try:
            return self._classes()[1](settings)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"config of a {self.family} tower: no tower has it: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error

    def _published(self, name: str) -> Any:
        """The configuration that a folder or the hub has under this name."""
        settings = self._classes()[0]
        try:
            found, _ = settings.get_config_dict(locate(name))
        except (OSError, ValueError) as error:
            raise self._unreachable(name, error) from error
        kind = found.get("model_type")
        if kind not in (self.family, f"{self.family}_vision_model"):
            what = f"a model of type {kind}" if kind else "a folder without a model's config.json"
            raise ValueError(
                f"{name} is {what}; {type(self).__name__} takes towers of type {self.family}"
            )
        return settings.from_dict(found.get("vision_config", found))

    def _download(self, name: str, settings: Any) -> Any:
        """The tower with the weights of that name; a tensor that is not there is an error."""
        if (folder := Path(locate(name))).is_dir():
            refuse_quantized(folder)
        try:
            with _silent_transformers():
                tower, report = self._classes()[1].from_pretrained(
                    locate(name),
                    config=settings,
                    dtype=torch.get_default_dtype(),
                    output_loading_info=True,
                )
        except OSError as error:
            raise self._unreachable(name, error) from error
        except (KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{name}: its weights do not load: {first_line(error)}") from error
        if report["missing_keys"]:
            raise ValueError(
                f"{name}: weights are {few('missing', sorted(report['missing_keys']))}"
            )
        check_values(tower.state_dict(), name)
        return tower

    def _load(self, weights: str, whole: Any) -> None:
        """Load a file of the whole tower or of the part that is kept."""
        with torch.device("meta"):
            known = self._built(whole).state_dict()
        needed = self.tower.state_dict()
        found = tensors_of(read_weights(weights), known)
        problem = misfit(found, needed, known)
        if problem:
            raise ValueError(f"{weights} does not fit {type(self).__name__}: {problem}")
        self.tower.load_state_dict({key: found[key] for key in needed})

    def _colours(self, name: str | None) -> tuple[Any, Any]:
        """Mean and deviation: those of the processor that stands beside the weights, if any."""
        from transformers.utils import cached_file

        found = {}
        # Version 5 of transformers writes all of a processor into one file.
        for file in ("processor_config.json", "preprocessor_config.json"):
            try:
                path = cached_file(locate(name), file) if name is not None else None
                read = json.loads(Path(path or "").read_text("utf-8"))
            except OSError:
                continue  # a tower that comes without a processor has the colours of its family
            found |= read.get("image_processor", {}) if file.startswith("processor") else read
        return tuple(found.get("image_mean", self.mean)), tuple(found.get("image_std", self.std))

    def _unreachable(self, name: str, error: Exception) -> FileNotFoundError:
        way_out = (
            "Set `name` to a local folder, or `weights` to a local file with `config` for its "
            "architecture"
        )
        return unreachable(name, error, way_out)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep transformers from reporting what is left out on purpose: text tower, last blocks."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
