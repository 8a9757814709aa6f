"""9. Kernels: how the norms and MLPs of an LM's layers are computed; attention is not theirs."""

import importlib.util
import sys
from typing import Any, Literal

from torch import Tensor

Kernels = Literal["plain", "compile", "liger"]


def use_kernels(model: Any, kernels: Kernels) -> Kernels:
    """Let an LM compute its norms and MLPs by these kernels; its weights stay what they are.

    Args:
        model: An LM of transformers.
        kernels: See `CausalLM`.

    Raises:
        ValueError: If liger-kernel is not there, or has none for this LM.
    """
    if kernels == "liger":
        _use_liger(model)
    elif kernels == "compile":
        for layer in model.get_decoder().layers:
            for name, part in layer.named_children():
                if "attn" not in name and not name.endswith("attention"):
                    part.compile(dynamic=True)  # any length, without compiling anew
    return kernels


def _use_liger(model: Any) -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        raise ValueError(
            "model.llm.kernels=liger needs liger-kernel, which is not there: pip install "
            "-e '.[liger]', or set it to plain"
        )
    from liger_kernel.transformers import monkey_patch  # pyrefly: ignore[missing-import]

    kind = model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"model.llm.kernels: liger-kernel has none for a {kind}; set it to plain")
    # It changes the classes of the module, too, of which other models may be built later.
    module = sys.modules[type(model).__module__]
    before = dict(vars(module))
    options = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    try:
        monkey_patch._apply_liger_kernel_to_instance(model=model, **options)
    finally:
        vars(module).update(before)


def refuse_cpu(kernels: Kernels, embeddings: Tensor) -> None:
    """Refuse to compute on a CPU what only a GPU can.

    Raises:
        ValueError: Says what to set.
    """
    if kernels == "liger" and embeddings.device.type == "cpu":
        raise ValueError("model.llm.kernels=liger is for GPUs; set it to plain on a CPU")
