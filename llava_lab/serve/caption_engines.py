"""Caption engines: images and videos -> captions, by a model of ours or by an inference server."""

import base64
import mimetypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from llava_lab.core.engine import ChatEngine, TruncatedReply, UnusableReply
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.image_folder import frame_files
from llava_lab.data.questions import Question
from llava_lab.serve.caption_inputs import CaptionInput

PROMPT = "Describe this {kind} in detail."
TRIES = 3  # requests before an unusable reply is an error


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
    """Captions with a model of ours, greedily, in batches.

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
        # Not at the top: it imports torch, which a remote engine does without.
        from llava_lab.serve.models import open_model, show_videos

        model, views = open_model(self.source, self.template, self.trusted)
        if any(each.kind == "video" for each in inputs):
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

    def _caption(self, model: Any, views: Any, inputs: Sequence[CaptionInput]) -> list[str]:
        from llava_lab.serve.answer import answer_questions

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
        return answer_questions(
            model,
            views,
            questions,
            max_new_tokens=self.max_new_tokens,
            images_per_batch=self.images_per_batch,
        )


class RemoteEngine:
    """Captions with any server of OpenAI's chat completions, such as vLLM and SGLang, greedily.

    Args:
        url: Address of the server, up to and with /v1.
        model: The server's name of its model.
        prompt: Prompt of every input, or None.
        max_new_tokens: Longest caption.
        in_flight: Requests at once.
        stop: Text that ends an answer, or None where a token does.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str | None,
        max_new_tokens: int,
        in_flight: int,
        stop: str | None = None,
    ):
        self.engine = ChatEngine(url, model, in_flight)
        self.prompt, self.stop, self.max_new_tokens = prompt, stop, max_new_tokens

    def __call__(
        self, inputs: Sequence[CaptionInput]
    ) -> Iterator[tuple[CaptionInput, str | Exception]]:
        """Caption all inputs; each is yielded as its answer comes."""
        return self.engine.each(self._caption, inputs)

    def _caption(self, shown: CaptionInput) -> str:
        # A folder of frames is sent as images.
        frames = shown.path.is_dir()
        kind = "image_url" if shown.kind == "image" or frames else "video_url"
        files = frame_files(shown.path) if frames else [shown.path]
        content: list[dict[str, Any]] = [
            {"type": kind, kind: {"url": _data_url(file)}} for file in files
        ]
        content.append({"type": "text", "text": prompt_of(shown, self.prompt)})
        messages = [{"role": "user", "content": content}]
        sampling: dict[str, Any] = {"max_tokens": self.max_new_tokens, "temperature": 0}
        if self.stop is not None:
            sampling["stop"] = [self.stop]
        for tries in range(1, TRIES + 1):
            try:
                return self.engine.complete(messages, **sampling)
            except TruncatedReply as problem:
                raise UnusableReply(f"{problem}; raise --max-new-tokens") from None
            except UnusableReply as problem:
                if tries == TRIES:
                    raise UnusableReply(f"{problem}, asked {TRIES} times") from None
        raise AssertionError("returned or raised")


def _data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
