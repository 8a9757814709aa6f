"""1. Fields: one raw row -> its id, messages and images; a wrong field raises `Refused`."""

import reprlib
from pathlib import Path
from typing import Any, Literal

from llava_lab.data.image_folder import ImageFolder, VideoPath
from llava_lab.data.rows import Refused

IMAGE_PLACEHOLDER = "<image>"
# LLaVA-NeXT's video rows have the same placeholder, VideoInstruct's and ShareGPTVideo's this one.
VIDEO_PLACEHOLDER = "<video>"
NO_VIDEO = f"no 'video', but a literal {VIDEO_PLACEHOLDER} in the text; name the video or reword"
# Left in the released VideoInstruct rows; LLaVA-NeXT's loader removes it from every message.
_NOISE = "QA_GT_caption_based_noisy"
_NAME = {"user": "human", "assistant": "gpt"}

Message = tuple[Literal["user", "assistant"], str]


def read_id(row: dict[str, Any], key: str, default: int | None = None) -> str:
    """Return the row's id as text, or `default` if it has none."""
    value = row.get(key, default)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused(f"{key!r} must be text or a whole number, not {reprlib.repr(value)}")
    return read_text(str(value), repr(key))


def read_text(value: Any, what: str) -> str:
    """Return `value` if it is text that can be encoded."""
    if not isinstance(value, str):
        raise Refused(f"{what} must be text, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused(f"{what} holds half a surrogate pair, which is no character") from None
    return value.replace(_NOISE, "")


def read_messages(row: dict[str, Any]) -> list[Message]:
    """Return the conversation, user and assistant in turn, the user first.

    A first message from gpt is dropped, as in the released loaders.
    """
    values = row.get("conversations")
    if not isinstance(values, list) or not values:
        raise Refused(f"'conversations' must be a list of messages; the row has {', '.join(row)}")
    messages = [_read_message(value, n) for n, value in enumerate(values, 1)]
    dropped = messages[0][0] == "assistant"
    if dropped:
        del messages[0]
    for at, (role, text) in enumerate(messages):
        if role != ("assistant" if at % 2 else "user"):
            raise Refused(f"message {at + 1 + dropped} is a second one in a row from {_NAME[role]}")
        if role == "assistant" and not text.strip():
            raise Refused(f"message {at + 1 + dropped}, an answer, is empty")
        if role == "assistant" and IMAGE_PLACEHOLDER in text:
            raise Refused(f"message {at + 1 + dropped}, an answer, holds a literal <image>")
    if len(messages) % 2 or not messages:
        raise Refused("the conversation ends without an answer from gpt")
    return messages


def _read_message(value: Any, number: int) -> Message:
    if not isinstance(value, dict):
        raise Refused(f"message {number} must be an object with 'from' and 'value'")
    try:
        text = read_text(value.get("value"), "'value'")
    except Refused as problem:
        raise Refused(f"message {number}: {problem}") from None
    match value.get("from"):
        case "human":
            return "user", text
        case "gpt":
            return "assistant", text
        case other:
            raise Refused(f"message {number} is from {other!r}; known are 'human' and 'gpt'")


def read_media(row: dict[str, Any]) -> tuple[list[str], str | None]:
    """Return the names of the row's images and of its video; null counts as absent."""
    images, video = row.get("image"), row.get("video")
    if images is not None and video is not None:
        raise Refused("has both 'image' and 'video'; make it two rows")
    if video is not None:
        if not isinstance(video, str) or not video:
            raise Refused(f"'video' must be a path, not {reprlib.repr(video)}")
        return [], read_text(video, "'video'")
    if images is None:
        return [], None
    names = images if isinstance(images, list) else [images]
    if not names or not all(isinstance(name, str) and name for name in names):
        what = f"'image' must be a path or a list of paths, not {reprlib.repr(images)}"
        raise Refused(f"{what}; leave it out of a text-only row")
    return [read_text(name, "'image'") for name in names], None


def find_images(
    row: dict[str, Any], folder: ImageFolder | None, videos: bool = False
) -> tuple[Path, ...]:
    """Return the absolute paths of the row's images, or of its video; all of them exist."""
    names, video = read_media(row)
    if video is not None:
        if not videos:
            raise Refused(f"video {video!r}: video rows need VideoDataModule")
        if folder is None:
            raise Refused(f"video {video!r}, but no folder of videos is given; set images")
        return (VideoPath(folder.find(video, "video")),)
    if names and folder is None:
        raise Refused(f"image {names[0]!r}, but no folder of images is given; set images")
    return tuple(folder.find(name) for name in names) if folder is not None else ()


def check_placeholders(found: int, images: int) -> None:
    """Refuse a row unless it has one `<image>` placeholder for each image."""
    if found == images:
        return
    if not images:
        raise Refused("no 'image', but a literal <image> in the text; name the image or reword")
    if not found:
        way_out = "start the first human message with '<image>\\n'"
        raise Refused(f"{images} image(s), but no <image> placeholder; {way_out}")
    raise Refused(f"{found} <image> placeholders for {images} image(s); write one for each image")


def with_image_placeholders(text: str, video: bool) -> str:
    """Write every `<video>` of a row with a video as `<image>`, the one placeholder of samples.

    In other rows a text is refused that begins with it, or ends with it on a line of its own, as
    published placeholders stand; elsewhere it is HTML's element, of which texts without media tell.

    Args:
        text: What the user says.
        video: Whether the row has a video.
    """
    if video:
        return text.replace(VIDEO_PLACEHOLDER, IMAGE_PLACEHOLDER)
    bare = text.strip()
    if bare.startswith(VIDEO_PLACEHOLDER) or bare.endswith(f"\n{VIDEO_PLACEHOLDER}"):
        raise Refused(NO_VIDEO)
    return text
