"""1. Layouts: rows as releases other than LLaVA's have them -> rows of LLaVA's format.

- VideoInstruct-100K: {q, a, video_id}. The video goes in front of the question; Video-ChatGPT's
  scripts/convert_instruction_json_to_training_format.py (mbzuai-oryx/Video-ChatGPT@69ea1db) puts it
  behind every second one, which `image_position: first_or_last` does at random.
- FineVision, and The Cauldron before it: {images, texts}, a list of pictures and one of
  {user, assistant}. Texts have no placeholders: all pictures stand in front of the first question,
  as in nanoVLM's loader (data/datasets.py of huggingface/nanoVLM@a363608), which also removes a
  placeholder that a text holds by chance.
"""

import reprlib
from typing import Any

from llava_lab.data.fields import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from llava_lab.data.rows import Refused

_QUESTION = frozenset({"q", "a", "video_id"})
_DIALOGUE = frozenset({"images", "texts"})


def in_llava_format(row: dict[str, Any]) -> dict[str, Any]:
    """A row in LLaVA's format; one that is in no other known layout is returned as it is.

    Raises:
        Refused: If a row of another layout lacks a text, or a list of pictures.
    """
    if row.keys() >= _QUESTION:
        video = row["video_id"]
        messages = [_message("human", row["q"], "q"), _message("gpt", row["a"], "a")]
        messages[0]["value"] = f"{VIDEO_PLACEHOLDER}\n{messages[0]['value']}"
        return _renamed(row, _QUESTION, id=video, video=video, conversations=messages)
    if row.keys() >= _DIALOGUE:
        texts, images = row["texts"], row["images"]
        if not isinstance(texts, list) or not all(isinstance(each, dict) for each in texts):
            raise Refused(f"'texts' must be a list of objects, not {reprlib.repr(texts)}")
        if images is not None and not isinstance(images, list):
            raise Refused(f"'images' must be a list of pictures, not {reprlib.repr(images)}")
        messages = []
        for number, each in enumerate(texts, 1):
            for who, key in (("human", "user"), ("gpt", "assistant")):
                message = _message(who, each.get(key), f"{key}' of text {number} of 'texts")
                message["value"] = message["value"].replace(IMAGE_PLACEHOLDER, "")
                messages.append(message)
        if messages and images:
            marks = f"{IMAGE_PLACEHOLDER}\n" * len(images)
            messages[0]["value"] = f"{marks}{messages[0]['value']}"
        return _renamed(row, _DIALOGUE, image=images or None, conversations=messages)
    return row


def _message(who: str, text: Any, key: str) -> dict[str, str]:
    if not isinstance(text, str):
        raise Refused(f"{key!r} must be text, not {type(text).__name__}")
    return {"from": who, "value": text}


def _renamed(row: dict[str, Any], old: frozenset[str], **values: Any) -> dict[str, Any]:
    return {**values, **{key: value for key, value in row.items() if key not in old}}
