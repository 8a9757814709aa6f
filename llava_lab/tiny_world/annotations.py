"""Annotations: a world's scenes -> captions and boxes in COCO's form.

`python -m llava_lab.tiny_world.annotations WORLD FOLDER` writes FOLDER/captions.json and
FOLDER/instances.json of the pictures to train on, as `make instruct` reads them. A box has a
`sentence`, too, as RefCOCO's have.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_lab.core.atomic import write
from llava_lab.core.records import read_record
from llava_lab.tiny_world.base import MANIFEST
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.scene import SHAPES, Scene, Sign
from llava_lab.tiny_world.text import caption

CAPTIONS = 5  # of a picture, as COCO has them
CATEGORIES = (*SHAPES, "sign")


class Described:
    """The pictures of a world that are trained on, with what COCO would say of them.

    Args:
        root: The world's folder.

    Raises:
        ValueError: If it is none, or of another version.
    """

    def __init__(self, root: Path):
        way_out = "Make it: python -m llava_lab fit -c experiments/llava15.yaml"
        if not (root / MANIFEST).is_file():
            raise ValueError(f"{root} is no world: it has no {MANIFEST}. {way_out}")
        settings = read_record(root / MANIFEST, {"settings": dict}, way_out)["settings"]
        version = settings.pop("generator_version", None)
        if version != TinyWorld.version:
            raise ValueError(f"{root}: of version {version}, not {TinyWorld.version}. {way_out}")
        self.world = TinyWorld(root, **settings)
        taken = frozenset(scene.signature for scene in self.world.eval_scenes())
        every = range(self.world.train_images)
        self.scenes = [self.world.scene("train", index, taken) for index in every]

    def captions(self, index: int) -> list[str]:
        """Sentences about a picture, each with its things in another order."""
        scene = self.scenes[index]
        rngs = (self.world._rng("annotations", index, number) for number in range(CAPTIONS))
        return [caption(scene, rng) for rng in rngs]

    def files(self) -> dict[str, dict[str, Any]]:
        """Both files, by name."""
        images = [
            {
                "id": index,
                "file_name": f"train/{index:06d}.png",
                "width": scene.width,
                "height": scene.height,
            }
            for index, scene in enumerate(self.scenes)
        ]
        said = [(index, text) for index in range(len(images)) for text in self.captions(index)]
        boxes = [(index, *box) for index, scene in enumerate(self.scenes) for box in _boxes(scene)]
        return {
            "captions.json": {
                "images": images,
                "annotations": [
                    {"id": number, "image_id": index, "caption": text}
                    for number, (index, text) in enumerate(said)
                ],
            },
            "instances.json": {
                "images": images,
                "categories": [{"id": n, "name": name} for n, name in enumerate(CATEGORIES, 1)],
                "annotations": [
                    {
                        "id": number,
                        "image_id": index,
                        "category_id": CATEGORIES.index(name) + 1,
                        "bbox": box,
                        "iscrowd": 0,
                        "sentence": sentence,
                    }
                    for number, (index, name, sentence, box) in enumerate(boxes)
                ],
            },
        }


def _boxes(scene: Scene) -> Iterator[tuple[str, str, list[int]]]:
    """Category of everything in a scene, words for it, and box."""
    for item in scene.items:
        yield item.shape, f"the {item.size} {item.name}", _box(item.center, item.pixels)
    if sign := scene.sign:
        yield "sign", f"the sign that reads {sign.glyph}", _box(sign.center, _side(sign))


def _side(sign: Sign) -> int:
    return sign.pixels + 2 * sign.margin


def _box(center: tuple[int, int], side: int) -> list[int]:
    return [center[0] - side // 2, center[1] - side // 2, side, side]


def main(root: Path, folder: Path) -> None:
    """Write both files."""
    for name, content in Described(root).files().items():
        write(folder / name, json.dumps(content) + "\n")


if __name__ == "__main__":
    parser = ArgumentParser("python -m llava_lab.tiny_world.annotations")
    parser.add_argument("world", metavar="WORLD", type=Path, help="the world's folder")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write")
    options = parser.parse_args()
    try:
        main(options.world, options.folder)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
