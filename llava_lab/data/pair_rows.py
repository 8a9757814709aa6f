"""1. Pair rows: a preference in the format of LLaVA-NeXT or TRL -> its prompt and two answers.

LLaVA-NeXT's rows hold texts. TRL's may hold lists of messages, whose content is text or a list of
parts, and may lack the prompt if `chosen` and `rejected` begin with it.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

from llava_lab.data.fields import (
    IMAGE_PLACEHOLDER,
    NO_VIDEO,
    VIDEO_PLACEHOLDER,
    check_placeholders,
    read_text,
    with_image_placeholders,
)
from llava_lab.data.rows import Refused

_MARKS = {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}


def read_pair(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return prompt, chosen and rejected answer as texts; images are placeholders."""
    prompt, chosen, rejected = (row.get(key) for key in ("prompt", "chosen", "rejected"))
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        if chosen[:-1] != rejected[:-1]:
            raise Refused("no 'prompt', and 'chosen' and 'rejected' begin with different messages")
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    return (
        read_message(prompt, "prompt", "user"),
        read_message(chosen, "chosen", "assistant"),
        read_message(rejected, "rejected", "assistant"),
    )


def with_image_key(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with TRL's `images` under `image`; an empty list means no image, as in TRL."""
    images = row.get("images")
    if images is None or images == []:
        return row
    if row.get("image") not in (None, images):
        raise Refused("has both 'image' and 'images'; keep one of them")
    return {**row, "image": images}


def check_answer(text: str, key: str) -> None:
    """Refuse an answer that is blank or holds a placeholder."""
    if not text.strip():
        raise Refused(f"{key!r} is empty")
    for placeholder in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
        if placeholder in text:
            raise Refused(f"an answer holds a literal {placeholder}")


def read_message(value: Any, key: str, role: str) -> str:
    """Return the text of a field, which is text or a list of one message."""
    if not isinstance(value, list):
        return read_text(value, repr(key))
    if len(value) != 1 or not isinstance(value[0], dict):
        roles = [each.get("role") if isinstance(each, dict) else each for each in value]
        raise Refused(
            f"{key!r} must be text or one message from {role!r}; it has messages from "
            f"{reprlib.repr(roles)}"
        )
    message = value[0]
    if message.get("role") != role:
        raise Refused(f"{key!r} must be from {role!r}, not {reprlib.repr(message.get('role'))}")
    content = message.get("content")
    if not isinstance(content, list):
        return read_text(content, f"'content' of {key!r}")
    return "".join(_part(part, key) for part in content)


def _part(part: Any, key: str) -> str:
    """Text of one part of a message; the placeholder for an image or video."""
    given = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
    match given:
        case {"type": "text", "text": text, **more} if not more:
            return read_text(text, f"'text' in {key!r}")
        case {"type": ("image" | "video") as kind, **more} if not more:
            return _MARKS[kind]
        case {"type": "image" | "video"}:
            raise Refused(f"{key!r} has {reprlib.repr(part)}; list its file under 'images'")
    raise Refused(f"{key!r} has {reprlib.repr(part)}; parts are of type 'text', 'image' or 'video'")


def place_marks(prompt: str, media: int, video: bool) -> str:
    r"""Return the prompt with one `<image>` for each image or video.

    A single one is moved to the front, as "<image>\nQ", as in LLaVA-NeXT's loader; several stay
    where they are, or are put in front of a prompt that has none.

    Args:
        prompt: The prompt.
        media: Number of images, or 1 of a video.
        video: Whether it is a video.

    Raises:
        Refused: If the prompt has another number of placeholders, those of a video without one, or
            no text.
    """
    if not video and VIDEO_PLACEHOLDER in prompt:
        raise Refused(NO_VIDEO)
    marked = with_image_placeholders(prompt, video)
    found = marked.count(IMAGE_PLACEHOLDER)
    if found:
        check_placeholders(found, media)
    bare = marked.replace(IMAGE_PLACEHOLDER, "").strip()
    if not bare:
        raise Refused("'prompt' is empty")
    return marked.strip() if found > 1 else f"{IMAGE_PLACEHOLDER}\n" * media + bare
