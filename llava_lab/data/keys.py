"""1. Keys: which keys rows of each format may have; unread keys with text or media are refused.

A reader that ignores a key would silently train on rows without their images. So a key that a
format does not read is refused, with the key that is probably meant, if it is

- another format's name of something that this one reads (`images`, `messages`, `instruction`);
- a misspelling of a key that this one reads (`imgae`, `Image`, `conversation`);
- named after a medium, not after a property of one, and holds text, a list or an object
  (`image_left`);
- the path of an image or video that the row does not show otherwise.

All other keys are ignored: published files have ids, sources, scores, sizes and the like. So are
values that are null or empty, or that the row repeats under the key that is meant.
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
# Words after a medium's name that make the key a property of it, such as `image_width`.
_FACTS = _words(
    "id ids idx index index number num count width height size sizes resolution source src sources "
    "split dataset origin license category categories type types format hash md5 sha1 sha256 fps "
    "duration length seconds start end time timestamp score scores quality domain tag tags label "
    "labels title author date key meta metadata info caption captions description descriptions "
    "embedding embeddings crop bbox box boxes ratio rate rating ratings credit"
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
        meant: Keys of other formats -> the key that they mean here.
        instead: The same for keys that may occur beside the one that they mean, with another
            value: an image's URL, or the question that the conversation was made from.
    """

    read: frozenset[str]
    meant: Mapping[str, str]
    instead: Mapping[str, str]

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuse a row with a key that would be ignored although it holds text or media.

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
        """File names of the images and videos that are read from a row."""
        return {name for key in self.read for name in _files(row.get(key))}

    def _near(self, key: str) -> str | None:
        """The known key that this one is a misspelling of, or None."""
        plain = key.strip().casefold().replace("-", "_")
        for known in sorted(self.read):
            if plain == known or (len(known) > 3 and _one_slip(plain, known)):
                return known
        return None


def _one_slip(a: str, b: str) -> bool:
    """Whether two words differ by one letter (added, missing, wrong) or by two swapped letters."""
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
    """File names of the images and videos whose paths a value holds."""
    paths = value if isinstance(value, list) else [value]
    return {
        path.rpartition("/")[2]
        for path in paths
        if isinstance(path, str) and path.casefold().endswith(_ENDINGS) and "://" not in path
    }


def _names_media(key: str, value: Any) -> bool:
    """Whether a key is named after a medium, is no property of one, and has a value to show."""
    if not isinstance(value, str | list | dict):
        return False
    return bool(_MEDIA & _named(key)) and not _FACTS & _named(key)


def _named(key: str) -> frozenset[str]:
    """Words of a key: `imageLeft` and `image_left` have two."""
    return frozenset(word.casefold() for word in _WORDS.findall(key))


def _keys(
    read: str, meant: Mapping[str, Iterable[str]], instead: Mapping[str, Iterable[str]]
) -> Keys:
    """Make the keys of a format; `meant` lists other formats' names by the key here."""
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
