"""lmms-eval: its requests -> greedy answers of a model of ours, as `--model llava_lab`.

lmms-eval finds it by this package's entry point, if both are installed in one environment.
Questions about the same image or video are answered together, as in `answer`. A request that cannot
be answered is an error that names task and document, never an empty answer.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms  # pyrefly: ignore[missing-import]
from lmms_eval.models.registry_v2 import ModelManifest  # pyrefly: ignore[missing-import]
from PIL import Image
from tqdm import tqdm

from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.image_folder import VIDEO_FILES, VideoPath
from llava_lab.data.media.picture import to_rgb
from llava_lab.data.modules.encoded import Position
from llava_lab.data.questions import Question
from llava_lab.serve.answer import answer_questions, check_answerable
from llava_lab.serve.models import open_model, show_videos

REQUESTS_AT_ONCE = 512  # requests whose images are on disk at once
# The stop text that lmms-eval fills in where a task names none, which none of its LLaVAs uses: an
# answer of several paragraphs is one answer.
FILLED_IN = "\n\n"


def manifest() -> ModelManifest:
    """Entry of lmms-eval's registry."""
    path = f"{LlavaLab.__module__}.{LlavaLab.__name__}"
    return ModelManifest(model_id="llava_lab", simple_class_path=path)


class LlavaLab(lmms):
    """A model of ours as a model of lmms-eval.

    Args:
        model: Run folder, imported folder, checkpoint folder or hub id.
        frames: Frames of a video; as trained, or else 16.
        stride: Pooling of a frame; as trained, or else 2.
        batch_size: Images or videos whose questions are answered at once.
        template: Chat template in place of the model's own.
        trust_code: Modules beside llava_lab whose classes a run may name, with + between them.
        device: Option of lmms-eval, not used: the model takes the GPU if there is one.
        max_batch_size: Option of lmms-eval, not used.
    """

    def __init__(
        self,
        model: str,
        frames: int | None = None,
        stride: int | None = None,
        batch_size: int | str = 1,
        template: str | None = None,
        trust_code: str = "",
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.model, self.views = open_model(
            model, template, [module for module in trust_code.split("+") if module]
        )
        self.frames, self.stride, self.shows_videos = frames, stride, False
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, in their order."""
        for some in _portions(requests):
            with tempfile.TemporaryDirectory() as folder:
                for asked, (_, questions) in self._questions(some, Path(folder)).items():
                    length, position = asked
                    check_answerable(self.model, self.views, questions, length, position=position)
        texts: list[str] = []
        with tqdm(total=len(requests), desc="llava_lab") as bar:
            for some in _portions(requests):
                with tempfile.TemporaryDirectory() as folder:
                    texts += self._answer(some, Path(folder))
                bar.update(len(some))
        return texts

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("llava_lab: tasks of several rounds are not answered")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise NotImplementedError("llava_lab: loglikelihoods are not computed; ask by generation")

    def _answer(self, requests: Sequence[Any], folder: Path) -> list[str]:
        texts = [""] * len(requests)
        for asked, (numbers, questions) in self._questions(requests, folder).items():
            length, position = asked
            answers = answer_questions(
                self.model,
                self.views,
                questions,
                position=position,
                max_new_tokens=length,
                images_per_batch=self.batch_size,
            )
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
        ends = [_options(request.args[1], "")[1] for request in requests]
        return [_cut(text, until) for text, until in zip(texts, ends, strict=True)]

    def _questions(
        self, requests: Sequence[Any], folder: Path
    ) -> dict[tuple[int, Position], tuple[list[int], list[Question]]]:
        """Indices and questions of requests, by longest answer and place of their pictures."""
        found: dict[tuple[int, Position], tuple[list[int], list[Question]]] = {}
        for number, request in enumerate(requests):
            context, options, to_visual, document, task, split = request.args
            place = f"task {task}, document {document}"
            length, _ = _options(options, place)
            shown = to_visual(self.task_dict[task][split][document]) or []
            paths = [_path(each, folder, place, self.views.upright) for each in shown]
            if any(isinstance(path, VideoPath) for path in paths):
                self._show_videos()
            text = _text(context, len(paths), place)
            position: Position = "keep" if IMAGE_PLACEHOLDER in context else "first"
            numbers, questions = found.setdefault((length, position), ([], []))
            numbers.append(number)
            questions.append(Question(str(number), tuple(paths), text, None, (), place))
        return found

    def _show_videos(self) -> None:
        if not self.shows_videos:
            self.views = show_videos(self.model, self.views, self.frames, self.stride)
            self.shows_videos = True


def _portions(requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(requests), REQUESTS_AT_ONCE):
        yield requests[start : start + REQUESTS_AT_ONCE]


def _options(options: dict[str, Any], place: str) -> tuple[int, list[str]]:
    """Read the longest answer and the task's stop texts; all but greedy decoding is refused."""
    if options.get("do_sample") and options.get("temperature", 1) > 0:
        raise ValueError(f"{place}: wants answers at random ({options}); llava_lab's are greedy")
    if options.get("num_beams", 1) > 1:
        raise ValueError(f"{place}: wants {options['num_beams']} beams; llava_lab has one")
    until = options.get("until") or []
    ends = [end for end in ([until] if isinstance(until, str) else until) if end != FILLED_IN]
    return int(options.get("max_new_tokens", 1024)), ends


def _path(shown: Any, folder: Path, place: str, upright: bool) -> Path:
    """Path of an image or video; an image in memory is saved under a hash of its pixels."""
    if isinstance(shown, Image.Image):
        try:
            picture = to_rgb(shown, upright)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        name = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        path = folder / f"{name}.png"
        if not path.is_file():
            picture.save(path, compress_level=1)
        return path
    if isinstance(shown, str) and Path(shown).exists():
        path = Path(shown)
        video = path.is_dir() or path.suffix.lower() in VIDEO_FILES
        return VideoPath(path) if video else path
    raise ValueError(f"{place}: shows {shown!r}, which is no picture and no file that is there")


def _text(context: str, images: int, place: str) -> str:
    """The question, with placeholders in front unless it has its own."""
    found = context.count(IMAGE_PLACEHOLDER)
    if found not in (0, images):
        raise ValueError(f"{place}: {found} {IMAGE_PLACEHOLDER} in the text for {images} pictures")
    return context if found else f"{IMAGE_PLACEHOLDER}\n" * images + context


def _cut(text: str, until: Sequence[str]) -> str:
    """The answer up to the first stop text."""
    for end in until:
        text = text.split(end)[0] if end else text
    return text.strip()
