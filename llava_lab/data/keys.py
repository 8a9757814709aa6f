"""1. Keys: what a row's keys may be; those that are not read and carry words or media are refused.

A reader that passes over a key trains without a word on rows without their pictures. So a key that
a format does not read is refused, by name and with the key that is meant, where it is

- what other formats call something that this one reads (`images`, `messages`, `instruction`);
- a near-misspelling of a key that this one reads (`imgae`, `Image`, `conversation`);
- named after a medium and no fact about it, and holds text, a list or an object (`image_left`);
- the path of a picture or video that the row does not show otherwise, by a key that is no fact.

Everything else is left alone: the published files carry ids, sources, scores, sizes and the like.
What is null or empty says nothing, and neither does what the row has already under the key that is
meant.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llava_lab.data.image_folder import FRAME_FILES, VIDEO_FILES
from llava_lab.data.rows import Refused

_IMAGE = (
    *("images", "img", "imgs", "image_path", "image_paths", "image_file", "image_files"),
    *("image_list", "img_path", "img_paths", "picture", "pictures", "photo", "photos", "pic"),
    *("pics", "media", "medias", "media_path", "modal_path", "visual", "visuals", "pixel_values"),
)
_IMAGE_NAME = ("image_name", "image_names", "image_url", "img_url", "file_name", "filename")
_VIDEO = (
    *("videos", "video_path", "video_paths", "video_file", "video_files", "video_list", "clip"),
    *("clips", "clip_path", "frames_path", "frame_paths"),
)
_VIDEO_NAME = ("video_name", "video_url")
_DIALOGUE = (
    *("messages", "conversation", "conversion", "conversions", "dialog", "dialogs", "dialogue"),
    *("dialogues", "turns"),
)
_REQUEST = ("instruction", "instructions", "query", "input", "inputs", "question", "prompt", "text")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WITHOUT_USE = {
    "system": "a chat template brings its own system prompt",
    "tools": "no template has tools",
    "audio": "there is no encoder for sound",
    "audios": "there is no encoder for sound",
}
# Words behind a medium's name that make a fact about it of a key.
_FACTS = _words(
    "id ids idx index index number num count width height size sizes resolution source src sources "
    "split dataset origin license category categories type types format hash md5 sha1 sha256 fps "
    "duration length seconds start end time timestamp score scores quality domain tag tags label "
    "labels title author date key meta metadata info caption captions description descriptions "
    "embedding embeddings crop bbox box boxes ratio rate credit"
)
_MEDIA = _words(
    "image images img imgs picture pictures photo photos pic pics video videos clip clips frame "
    "frames media audio audios visual visuals"
)
_ENDINGS = (*FRAME_FILES, *VIDEO_FILES, ".gif", ".tif", ".tiff")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True)
class Keys:
    """The keys of one format of rows.

    Attributes:
        read: Keys that are read.
        meant: Keys of other formats, and which of these they mean.
        instead: The same of keys that may stand beside the one that is meant, where they say
            something else: a picture's address, a question that has become a conversation.
    """

    read: frozenset[str]
    meant: Mapping[str, str]
    instead: Mapping[str, str]

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuse a row with a key that would be passed over and says something.

        Raises:
            Refused: For the first such key.
        """
        for key, value in row.items():
            if key in self.read or value in (None, "", [], {}):
                continue
            if key in _WITHOUT_USE:
                raise Refused(f"key {key!r} is not read: {_WITHOUT_USE[key]}; leave it out")
            meant = self.meant.get(key) or self._near(key)
            if meant is None and row.get(self.instead.get(key, key)) is None:
                meant = self.instead.get(key)
            if meant is not None and row.get(meant) != value:
                raise Refused(f"key {key!r} is not read; did you mean {meant!r}?")
            if meant is None and (
                (key not in self.instead and _names_media(key, value))
                or (_files(value) - self._shown(row) and not _FACTS & _named(key))
            ):
                raise Refused(f"key {key!r} is not read; known are {', '.join(sorted(self.read))}")

    def _shown(self, row: Mapping[str, Any]) -> set[str]:
        """Names of the files that are read."""
        return {name for key in self.read for name in _files(row.get(key))}

    def _near(self, key: str) -> str | None:
        """The key that is read which this one is a misspelling of."""
        plain = key.strip().casefold().replace("-", "_")
        for known in sorted(self.read):
            if plain == known or (len(known) > 3 and _one_slip(plain, known)):
                return known
        return None


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter too many, too few or wrong, or two that are swapped, part two words."""
    if a == b or abs(len(a) - len(b)) > 1:
        return a == b
    start = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    rest, other = a[start:], b[start:]
    return (
        rest[1:] == other[1:]
        or rest[1:] == other
        or rest == other[1:]
        or (rest[:2] == other[1::-1] and rest[2:] == other[2:])
    )


def _files(value: Any) -> set[str]:
    """Names, without their folders, of the pictures and videos that a value is a path of."""
    paths = value if isinstance(value, list) else [value]
    return {
        path.rpartition("/")[2]
        for path in paths
        if isinstance(path, str) and path.casefold().endswith(_ENDINGS) and "://" not in path
    }


def _names_media(key: str, value: Any) -> bool:
    """Whether a key is named after a medium, is no fact about it, and has something to show."""
    if not isinstance(value, str | list | dict):
        return False
    return bool(_MEDIA & _named(key)) and not _FACTS & _named(key)


def _named(key: str) -> frozenset[str]:
    """The words that a key is made of."""
    return frozenset(word.casefold() for word in _WORDS.findall(key))


def _keys(
    read: str, meant: Mapping[str, Iterable[str]], instead: Mapping[str, Iterable[str]]
) -> Keys:
    """A format's keys; the other formats' stand by the key that is meant."""
    known = _words(read)
    always, absent = (
        {other: key for key, names in each.items() for other in names if other not in known}
        for each in (meant, instead)
    )
    return Keys(known, always, absent)


SAMPLE_KEYS = _keys(
    "id image video conversations",
    {"image": _IMAGE, "video": _VIDEO, "conversations": _DIALOGUE},
    {"image": _IMAGE_NAME, "video": _VIDEO_NAME, "conversations": _REQUEST},
)
QUESTION_KEYS = _keys(
    "question_id image video text category answer answers caption",
    {"image": _IMAGE, "video": _VIDEO, "text": (*_DIALOGUE, "conversations")},
    {"image": _IMAGE_NAME, "video": _VIDEO_NAME, "text": _REQUEST},
)
PREFERENCE_KEYS = _keys(
    "id image images video prompt chosen rejected",
    {"image": _IMAGE, "video": _VIDEO, "prompt": (*_DIALOGUE, "conversations")},
    {"image": _IMAGE_NAME, "video": _VIDEO_NAME, "prompt": _REQUEST},
)
CAPTION_KEYS = _keys(
    "id image video",
    {"image": _IMAGE, "video": _VIDEO},
    {"image": _IMAGE_NAME, "video": _VIDEO_NAME},
)
PHRASE_KEYS = _keys(
    "id image phrases",
    {"image": (*_IMAGE, "video", *_VIDEO), "phrases": ("phrase",)},
    {"image": _IMAGE_NAME, "phrases": ("texts", "captions")},
)
