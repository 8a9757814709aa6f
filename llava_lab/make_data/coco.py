"""COCO: annotations as they are published -> what a picture shows, in words and boxes.

Read are captions_*.json and instances_*.json (cocodataset.org, "Data format"): `images` with `id`,
`file_name`, `width`, `height`; `annotations` with `image_id` and `caption`, or `category_id` and
`bbox` [x, y, width, height] in pixels; `categories` with `id` and `name`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llava_lab.core.strict_json import parse
from llava_lab.data.rows import BadRow, BadRows, Refused

_Found = TypeVar("_Found")
DECIMALS = 3  # as in the contexts that LLaVA shows (arXiv:2304.08485, Table 14)


@dataclass
class Picture:
    """What annotations say of a picture.

    Attributes:
        id: Its number in the annotations.
        name: Name of its file.
        size: Width and height in pixels.
        captions: Sentences about it.
        boxes: What is in it, each with left, top, right and bottom as shares of its sides.
    """

    id: str
    name: str
    size: tuple[float, float]
    captions: list[str] = field(default_factory=list)
    boxes: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """Its name without ending, which is the id of its row in LLaVA's files."""
        return Path(self.name).stem


def box_text(box: tuple[float, ...]) -> str:
    """A box as text: [0.681, 0.242, 0.774, 0.694]."""
    return f"[{', '.join(str(round(side, DECIMALS)) for side in box)}]"


def read_coco(captions: Path, instances: Path | None) -> list[Picture]:
    """Read the pictures that have captions, in the order of the file, with their boxes.

    Boxes of crowds are left out. What both files say of a picture, its name and its size, has to be
    equal; two files of other pictures with equal names and sizes are not told apart.

    Raises:
        BadRows: If annotations are wrong, or of pictures that the file does not list; or if both
            files have other pictures under one id.
        ValueError: If a file is not of COCO's form, or no picture has a caption.
    """
    found = _read(captions)
    pictures = {each.id: each for each in _each(captions, found, "images", _picture)}
    if len(pictures) < len(found["images"]):
        raise ValueError(f"{captions}: ids of `images` are repeated")

    def add_caption(row: Mapping[str, Any]) -> None:
        text = row.get("caption")
        if not isinstance(text, str) or not text.strip():
            raise Refused(f"`caption` is {text!r:.80}")
        _of(row, pictures).captions.append(" ".join(text.split()))

    list(_each(captions, found, "annotations", add_caption))
    if instances is not None:
        _add_boxes(instances, captions, pictures)
    described = [each for each in pictures.values() if each.captions]
    if not described:
        raise ValueError(f"{captions}: no picture has a caption")
    return described


def _add_boxes(path: Path, captions: Path, pictures: Mapping[str, Picture]) -> None:
    found = _read(path)
    if not isinstance(found.get("categories"), list):
        raise ValueError(f"{path}: has no list `categories`; instances_*.json has")
    names = {each.get("id"): each.get("name") for each in found["categories"]}

    def described(row: Mapping[str, Any]) -> Picture | None:
        """The picture of the captions that has the same id, if one has."""
        picture = pictures.get(str(row.get("id")))
        if picture is not None:
            name, width, height = (row.get(key) for key in ("file_name", "width", "height"))
            both = zip((name, width, height), (picture.name, *picture.size), strict=True)
            if any(each not in (None, ours) for each, ours in both):
                raise Refused(
                    f"is {name!r} of {width}x{height} pixels, and in {captions} this id is "
                    f"{picture.name!r} of {picture.size[0]:g}x{picture.size[1]:g}; give two files "
                    "of one release"
                )
        return picture

    own = {each.id: each for each in _each(path, found, "images", described) if each is not None}

    others = {str(row.get("id")) for row in found["images"]} - own.keys()  # without captions

    def add(row: Mapping[str, Any]) -> None:
        if str(row.get("image_id")) in others:
            return
        picture, name = _of(row, own), names.get(row.get("category_id"))
        if not isinstance(name, str):
            raise Refused(f"`category_id` {row.get('category_id')!r} is of no category")
        if not row.get("iscrowd"):
            picture.boxes.append((name, normalized(row.get("bbox"), picture.size)))

    list(_each(path, found, "annotations", add))


def normalized(box: Any, size: tuple[float, float]) -> tuple[float, ...]:
    """Left, top, right and bottom as shares of the picture's sides, cut at its edges.

    Args:
        box: [x, y, width, height] in pixels.
        size: Width and height of the picture.

    Raises:
        Refused: If it is no box, or outside of the picture.
    """
    numbers = box if isinstance(box, list | tuple) and len(box) == 4 else []
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise Refused(f"`bbox` is {box!r:.80}, not [x, y, width, height]")
    x, y, width, height = numbers
    sides = (x, y, x + width, y + height)
    shares = [min(1.0, max(0.0, side / size[at % 2])) for at, side in enumerate(sides)]
    if shares[0] >= shares[2] or shares[1] >= shares[3]:
        raise Refused(f"`bbox` {box} shows nothing of a picture of {size[0]:g}x{size[1]:g} pixels")
    return tuple(shares)


def _picture(row: Mapping[str, Any]) -> Picture:
    name, size = row.get("file_name"), (row.get("width"), row.get("height"))
    if not isinstance(name, str) or not name:
        raise Refused(f"`file_name` is {name!r}")
    if any(isinstance(side, bool) or not isinstance(side, int | float) for side in size):
        raise Refused(f"`width` and `height` are {size[0]!r} and {size[1]!r}")
    width, height = (float(side) for side in size if side is not None)
    if min(width, height) <= 0:
        raise Refused(f"is {width:g}x{height:g} pixels")
    return Picture(str(row.get("id")), name, (width, height))


def _of(row: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Picture:
    picture = pictures.get(str(row.get("image_id")))
    if picture is None:
        raise Refused(f"`image_id` {row.get('image_id')!r} is not among the `images`")
    return picture


def _read(path: Path) -> dict[str, Any]:
    found = parse(path.read_text(encoding="utf-8-sig"), str(path))
    lists = ("images", "annotations")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in lists):
        raise ValueError(f"{path}: not of COCO's form: an object with `images` and `annotations`")
    return found


def _each(
    path: Path, found: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any]], _Found]
) -> Iterator[_Found]:
    """What `read` makes of each row of a list.

    Raises:
        BadRows: If it refuses some.
    """
    bad = []
    for number, row in enumerate(found[key], 1):
        place = f"{path}, {key} {number}"
        try:
            if not isinstance(row, dict):
                raise Refused(f"is {type(row).__name__}, not an object")
            yield read(row)
        except Refused as problem:
            name = row.get("id", number) if isinstance(row, dict) else number
            bad.append(BadRow(place, str(name), str(problem)))
    if bad:
        raise BadRows(path, bad, len(found[key]))
