"""Chat: lines of a user -> a conversation with a model about images or videos."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llava_lab.data.chat import get_template
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.modules.encoded import ViewLoader
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.sample import Turn
from llava_lab.data.tokens import IGNORE
from llava_lab.data.views.base import Views
from llava_lab.evaluate.prompts import beyond
from llava_lab.model.generate import QuestionBatch, answer
from llava_lab.model.llava import Llava
from llava_lab.serve.models import device_of


def talk(
    model: Llava,
    views: Views,
    images: Sequence[Path],
    max_new_tokens: int,
    ask: Callable[[str], str],
) -> list[Turn]:
    """Take turns until an empty line or the end of input, and print each answer.

    Args:
        model: The model.
        views: How an image becomes views.
        images: Images and videos that the first question shows.
        max_new_tokens: Longest answer.
        ask: Asks the user for a line, such as `input`.

    Returns:
        The conversation.

    Raises:
        ValueError: If the conversation is longer than the LM can read, or the template would hide
            what is asked.
    """
    template, tokenizer = get_template(model.llm.template), model.llm.tokenizer
    template.check_asks()
    load = ViewLoader(views, model.view_spec)
    pixels, layouts = load(images)
    stops = frozenset(template.stop_ids(tokenizer))
    turns: list[Turn] = []
    while True:
        try:
            text = ask("user: ").strip()
        except EOFError:
            text = ""
        if not text:
            return turns
        shown = f"{IMAGE_PLACEHOLDER}\n" * len(images) if not turns else ""
        turns.append(Turn("user", shown + text))
        prompt = load.add_words(turns, images)
        ids = template.prompt(prompt, tokenizer, [each.tokens for each in layouts], "the chat")
        if problem := beyond(ids, images, layouts, load, model.llm.context, max_new_tokens):
            raise ValueError(f"the chat, question {len(turns) // 2 + 1}: {problem}")
        sample = EncodedSample([Segment(ids, [IGNORE] * len(ids))], pixels, layouts, "the chat")
        batch = Batch.pack([sample])
        question = QuestionBatch(batch, ["chat"], max_new_tokens, stops, template.stop_string)
        turns.append(Turn("assistant", answer(model, question.to(device_of(model))).texts[0]))
        print(f"assistant: {turns[-1].text}")
