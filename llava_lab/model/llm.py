"""9. LM: embeddings of a packed row [t, d] -> hidden states [t, d] -> logits where needed."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llava_lab.core.numbers import at_least
from llava_lab.data.forest import Forest
from llava_lab.model.attention.forest import ATTENTION
from llava_lab.model.attention.plan import AttentionPlan
from llava_lab.model.encoder.tower import first_line
from llava_lab.model.kernels import Kernels, refuse_cpu, use_kernels
from llava_lab.model.lm_checks import check_lm, rope_window
from llava_lab.model.lm_files import download, lm_config, refuse_idle_name
from llava_lab.model.weights import load_part, locate, seeded


class CausalLM(nn.Module):
    """A causal LM of transformers, with its tokenizer and chat template.

    Args:
        name: Hub id or local folder of the LM; and of its tokenizer, unless `tokenizer` is given.
        template: Chat template of the LM's conversations: a name of `llava_lab.data.chat`, or
            `tokenizer` for the template that the tokenizer brings.
        max_length: Longest sequence in tokens, with visual tokens; longer rows are truncated, as
            in the recipes.
        pretrained: Load the weights of `name`; false builds the architecture with random weights.
        weights: A .safetensors file to load in place of the weights of `name`.
        config: Values of the LM's configuration to change. With a `model_type` it is what the LM
            is: with `pretrained: false` that of `name` is not read, and otherwise it has to agree.
            A `name` of which not even the tokenizer is read is refused.
        tokenizer: Hub id or local folder of the tokenizer.
        attention: `forest` computes a packed row at once; `padded` computes each of its paths in a
            row of its own with transformers' attention, which is slower, works for any LM, and is
            the reference for `forest`.
        dtype: Type of the weights. An LM that trains has float32, whatever it is computed in: the
            trainer's precision casts.
        rope_factor: Factor of linear RoPE scaling: the LM reads so many times its length;
            `max_length`, also that of stages, is multiplied by it.
        kernels: How norms and MLPs are computed: `plain` by transformers, `compile` by
            torch.compile, `liger` by liger-kernel, for GPUs; docs/speed.md has what they bring.
    """

    # Weights, configuration and tokenizer are hashed by content; template and length belong to the
    # stages that use them; kernels decide rounding alone.
    idle = ("name", "weights", "tokenizer", "tokenizer_source", "template", "max_length", "kernels")

    def __init__(
        self,
        name: str | None,
        template: str,
        max_length: int = 2048,
        pretrained: bool = True,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        attention: Literal["forest", "padded"] = "forest",
        dtype: Literal["float32", "bfloat16"] = "float32",
        rope_factor: float = 1.0,
        kernels: Kernels = "plain",
    ):
        super().__init__()
        at_least(1, "model.llm.", max_length=max_length, rope_factor=rope_factor)
        self.name, self.template, self.rope_factor = name, template, rope_factor
        self.max_length, self.scaled = int(max_length * rope_factor), 1.0
        self.attention = attention
        if name is None and tokenizer is None:
            raise ValueError("model.llm: give `name`, or `config` and `tokenizer`")
        refuse_idle_name(name, tokenizer, config or {}, pretrained)
        self.tokenizer_source = locate(tokenizer or name or "")
        settings = lm_config(name, dict(config or {}), pretrained)
        scale_positions(settings, rope_factor)
        kind = getattr(torch, dtype)
        if pretrained and weights is None:
            if name is None:
                raise ValueError(
                    "model.llm: there is no `name` to load weights of; set pretrained to false "
                    "for random ones, or give `weights`"
                )
            self.model = download(
                AutoModelForCausalLM, locate(name), "model.llm.name", config=settings, dtype=kind
            )
        else:
            with seeded("llm"):
                self.model = _build(settings, kind)
            if weights is not None:
                load_part(self.model, weights, "llm.model.")
        check_lm(self.model, attention)
        # What torch's attention lacks, sinks and capped scores, is in transformers' own code.
        padded = "sdpa" if self.model._supports_sdpa else "eager"
        self.model.set_attn_implementation(ATTENTION if attention == "forest" else padded)
        self.kernels = use_kernels(self.model, kernels)

    def identity(self) -> Any:
        """Full definition of the tokenizer, for keys of caches."""
        if self.tokenizer.is_fast:
            return self.tokenizer.backend_tokenizer.to_str()
        return self.tokenizer.get_vocab()

    def length(self, max_length: int | None) -> int:
        """Longest row in tokens, for a stage's `max_length` or its default.

        Raises:
            ValueError: If other rows of a batch would show in a row of that length.
        """
        longest = self.max_length if max_length is None else int(max_length * self.rope_factor)
        window = rope_window(self.model.config)
        if window is not None and longest > window:
            raise ValueError(
                f"max_length is {longest}, and this {self.model.config.model_type} is for rows of "
                f"{window}: beyond, its RoPE (longrope, dynamic) goes by the longest row of a "
                f"batch, so that a row's neighbours change its result. Set max_length to {window}"
            )
        return longest

    @property
    def context(self) -> int:
        """Most tokens that the LM can read, whatever length it was trained on."""
        config = self.model.config
        if (window := rope_window(config)) is not None:
            return window
        positions = getattr(config, "max_position_embeddings", self.max_length)
        rope = getattr(config, "rope_parameters", None) or {}
        return int(positions * (rope["factor"] if rope.get("rope_type") == "linear" else 1))

    def scale(self, factor: float) -> None:
        """Scale the positions of a loaded LM by a factor, if `rope_factor` has not done so.

        Raises:
            ValueError: If the LM's positions cannot be scaled.
        """
        if factor == self.scaled:
            return
        if self.scaled != 1:
            raise ValueError(f"positions are divided by {self.scaled:g} already")
        scale_positions(self.model.config, factor)
        for module in self.model.modules():
            if isinstance(getattr(module, "inv_freq", None), Tensor):
                module.inv_freq /= factor
        self.scaled = factor

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The LM's tokenizer, loaded on first access."""
        if "_tokenizer" not in self.__dict__:
            loaded = download(AutoTokenizer, self.tokenizer_source, "model.llm.tokenizer")
            size = self.model.get_input_embeddings().weight.shape[0]
            if len(loaded) > size:
                raise ValueError(
                    f"the tokenizer {self.tokenizer_source} has {len(loaded)} tokens and the LM "
                    f"{self.name} embeds {size}: they do not belong together"
                )
            self.__dict__["_tokenizer"] = loaded
        return self.__dict__["_tokenizer"]

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids [t] to [t, d]; visual placeholders get the embedding of token 0."""
        return self.model.get_input_embeddings()(ids.clamp(min=0))

    def forward(
        self, embeddings: Tensor, forest: Forest, plan: AttentionPlan | None = None
    ) -> Tensor:
        """Compute the last hidden states [t, d] of a packed row.

        Args:
            embeddings: [t, d].
            forest: Segments of the row.
            plan: How tokens attend if a cache is used; by default the whole forest at once.
        """
        refuse_cpu(self.kernels, embeddings)
        if self.attention == "padded":
            return self._padded(embeddings, forest)
        plan = plan or AttentionPlan.whole(forest, embeddings.device)
        plan.calls.clear()
        output = self.model.get_decoder()(
            inputs_embeds=embeddings[None],
            position_ids=plan.query_positions[None],
            use_cache=False,
            forest=plan,
        )
        return output.last_hidden_state[0]

    def _padded(self, embeddings: Tensor, forest: Forest) -> Tensor:
        """Compute the hidden states with each path from root to leaf in a padded row of its own."""
        spans = [torch.arange(s, s + n) for s, n in zip(forest.starts, forest.lengths, strict=True)]
        paths = [torch.cat([spans[segment] for segment in forest.path(i)]) for i in forest.leaves]
        rows = pad_sequence([embeddings[path] for path in paths], batch_first=True)
        lengths = torch.tensor([len(path) for path in paths], device=embeddings.device)
        steps = torch.arange(rows.shape[1], device=embeddings.device)
        output = self.model.get_decoder()(
            inputs_embeds=rows,
            attention_mask=(steps[None] < lengths[:, None]).long(),
            position_ids=steps[None].expand(len(paths), -1),
            use_cache=False,
        ).last_hidden_state
        # A token in several paths has the same hidden state in all: take the first.
        where = torch.full((forest.tokens, 2), -1)
        for row, path in reversed(list(enumerate(paths))):
            where[path] = torch.stack([torch.full_like(path, row), torch.arange(len(path))], 1)
        return output[where[:, 0], where[:, 1]]

    def head(self) -> nn.Linear:
        """The output layer: hidden states [n, d] -> logits [n, vocabulary]."""
        return self.model.get_output_embeddings()


def scale_positions(config: Any, factor: float) -> None:
    """Set linear RoPE scaling by a factor in an LM's configuration; 1 changes nothing.

    Raises:
        ValueError: If it has no rotary embedding, or one that is scaled already.
    """
    if factor == 1:
        return
    at_least(1, "model.llm.", rope_factor=factor)
    rope = getattr(config, "rope_parameters", None)
    kind = config.model_type
    if not rope:
        raise ValueError(
            f"model.llm.rope_factor: a {kind} has no rotary embedding to scale; leave it at 1"
        )
    if "rope_type" not in rope:
        raise ValueError(
            f"model.llm.rope_factor: a {kind} has several rotary embeddings "
            f"({', '.join(rope)}), and which to scale was never published; leave it at 1"
        )
    if rope["rope_type"] != "default":
        raise ValueError(
            f"model.llm.rope_factor: this {kind} scales its positions already "
            f"({rope['rope_type']}); set model.llm.config.rope_parameters instead"
        )
    config.rope_parameters = {**rope, "rope_type": "linear", "factor": factor}


def _build(config: Any, dtype: torch.dtype) -> Any:
    """Make the LM of a configuration, with random weights."""
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"model.llm.config: no {config.model_type} has it: {reason}") from error
