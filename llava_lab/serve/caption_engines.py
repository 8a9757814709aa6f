"""Caption engines: images and videos -> captions, by a model of ours or by an inference server."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

from llava_lab.core.engine import TruncatedReply
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.questions import Question
from llava_lab.serve.caption_inputs import CaptionInput
from llava_lab.serve.remote import RemoteModel

PROMPT = "Describe this {kind} in detail."


class CaptionEngine(Protocol):
    """Captions inputs."""

    def __call__(
        self, inputs: Sequence[CaptionInput]
    ) -> Iterator[tuple[CaptionInput, str | Exception]]:
        """Yield each input with its caption, or with what went wrong, in any order."""
        ...


def prompt_of(shown: CaptionInput, prompt: str | None) -> str:
    """The prompt of an input; None asks for a detailed description."""
    return PROMPT.format(kind=shown.kind) if prompt is None else prompt


class LocalEngine:
    """Captions with a model of ours, greedily, in batches; one that is cut off is refused.

    Args:
        model: Run folder, imported folder, checkpoint folder or hub id.
        prompt: Prompt of every input, or None.
        max_new_tokens: Longest caption.
        images_per_batch: Images or videos at once.
        frames: Frames of a video; None takes those of training, or else 16.
        stride: Pooling of a frame; None takes that of training, or else 2.
        template: As for `open_model`.
        trusted: As for `open_model`.
    """

    def __init__(
        self,
        model: str,
        prompt: str | None,
        max_new_tokens: int,
        images_per_batch: int,
        frames: int | None = None,
        stride: int | None = None,
        template: str | None = None,
        trusted: Sequence[str] = (),
    ):
        self.source, self.prompt = model, prompt
        self.template, self.trusted = template, trusted
        self.max_new_tokens, self.images_per_batch = max_new_tokens, images_per_batch
        self.frames, self.stride = frames, stride

    def __call__(
        self, inputs: Sequence[CaptionInput]
    ) -> Iterator[tuple[CaptionInput, str | Exception]]:
        """Caption all inputs, batch by batch."""
        if not inputs:
            return
        model, views = self.opened
        if any(each.kind == "video" for each in inputs):
            from llava_lab.serve.models import show_videos

            views = show_videos(model, views, self.frames, self.stride)
        for start in range(0, len(inputs), self.images_per_batch):
            batch = inputs[start : start + self.images_per_batch]
            try:
                captions = self._caption(model, views, batch)
            except (OSError, ValueError):  # one bad image must not cost its batch
                for each in batch:
                    try:
                        yield each, self._caption(model, views, [each])[0]
                    except (OSError, ValueError) as error:
                        yield each, error
            else:
                yield from zip(batch, captions, strict=True)

    @cached_property
    def opened(self) -> tuple[Any, Any]:
        """The model, and its views."""
        # Not at the top: they import torch, which a remote engine does without.
        from llava_lab.data.chat import get_template
        from llava_lab.serve.models import open_model

        model, views = open_model(self.source, self.template, self.trusted)
        get_template(model.llm.template).check_asks()  # once, and not for every picture
        return model, views

    def _caption(
        self, model: Any, views: Any, inputs: Sequence[CaptionInput]
    ) -> list[str | Exception]:
        from llava_lab.serve.answer import whole_or_not

        questions = [
            Question(
                id=each.id,
                images=(each.path.absolute(),),
                text=f"{IMAGE_PLACEHOLDER}\n{prompt_of(each, self.prompt)}",
                category=None,
                answers=(),
                source=each.name,
            )
            for each in inputs
        ]
        most = self.max_new_tokens
        cut = f"the answer is cut off at {most} tokens; raise --max-new-tokens"
        found = whole_or_not(
            model,
            views,
            questions,
            max_new_tokens=most,
            images_per_batch=self.images_per_batch,
        )
        return [text if whole else TruncatedReply(cut) for text, whole in found]


class RemoteEngine:
    """Captions with any server of OpenAI's chat completions, such as vLLM and SGLang, greedily.

    Args:
        model: The model behind the server.
        prompt: Prompt of every input, or None.
    """

    def __init__(self, model: RemoteModel, prompt: str | None):
        self.model, self.prompt = model, prompt

    def __call__(
        self, inputs: Sequence[CaptionInput]
    ) -> Iterator[tuple[CaptionInput, str | Exception]]:
        """Caption all inputs; each is yielded as its answer comes."""
        return self.model.engine.each(self._caption, inputs)

    def _caption(self, shown: CaptionInput) -> str:
        return self.model.ask([shown.path], prompt_of(shown, self.prompt))
