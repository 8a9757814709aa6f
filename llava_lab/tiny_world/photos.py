"""Photos: scikit-image's photographs as a LLaVA-format file and a question file.

`python -m llava_lab.tiny_world.photos FOLDER` writes FOLDER/images, FOLDER/rows.json (to train
on) and FOLDER/questions.jsonl: a few photographs that come with scikit-image, with sentences and
short answers about them, as an example of data that this project did not generate.
"""

import json
import shutil
import sys
from argparse import ArgumentParser
from pathlib import Path

from llava_lab.tiny_world.text import SHORT_ANSWER

# file: (caption, [(question, short answer)]); the last four are never trained on.
PHOTOS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "chelsea.png": (
        "A close view of the face of an orange cat that looks to the side.",
        [("What animal is in the picture?", "cat"), ("Is there a person?", "no")],
    ),
    "coffee.png": (
        "A cup of coffee on a saucer with a spoon, on a wooden table.",
        [("What is in the cup?", "coffee"), ("What is the table made of?", "wood")],
    ),
    "coins.png": (
        "Rows of old coins on a dark background, in black and white.",
        [("What objects are shown?", "coins"), ("Is the picture in color?", "no")],
    ),
    "moon.png": (
        "The surface of the moon with craters, in black and white.",
        [("What is shown?", "moon"), ("Is the picture in color?", "no")],
    ),
    "motorcycle_left.png": (
        "A motorcycle stands in a garage.",
        [("What vehicle is in the picture?", "motorcycle"), ("Is there a cat?", "no")],
    ),
    "hubble_deep_field.jpg": (
        "Many distant galaxies in a dark sky.",
        [("What is shown?", "galaxies"), ("Is there a person?", "no")],
    ),
    "grass.png": (
        "A close view of grass, in black and white.",
        [("What is shown?", "grass"), ("Is there a cat?", "no")],
    ),
    "brick.png": (
        "A wall of bricks, in black and white.",
        [("What is the wall made of?", "brick"), ("Is the picture in color?", "no")],
    ),
    "astronaut.png": (
        "A smiling woman in an orange space suit in front of a flag.",
        [("Is there a person?", "yes"), ("What color is the suit?", "orange")],
    ),
    "camera.png": (
        "A man in a coat looks through a camera on a tripod, in black and white.",
        [("Is there a person?", "yes"), ("Is the picture in color?", "no")],
    ),
    "rocket.jpg": (
        "A rocket on its launch pad in the evening.",
        [("What is shown?", "rocket"), ("Is there a cat?", "no")],
    ),
    "gravel.png": (
        "A close view of gravel, in black and white.",
        [("What is shown?", "gravel"), ("Is the picture in color?", "no")],
    ),
}
NEW = 4


def main(folder: Path) -> None:
    """Copy the photographs and write rows and questions."""
    try:
        import skimage
    except ImportError:
        sys.exit("error: scikit-image is not installed: pip install -e '.[dev]'")
    source = Path(skimage.__file__).parent / "data"
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows, questions = [], []
    for number, (name, (caption, pairs)) in enumerate(PHOTOS.items()):
        shutil.copyfile(source / name, images / name)
        new = number >= len(PHOTOS) - NEW
        if not new:
            turns = [("Describe the picture briefly.", caption)]
            turns += [(f"{question}\n{SHORT_ANSWER}", answer) for question, answer in pairs]
            rows += [_row(f"{name}-{i}", name, *turn) for i, turn in enumerate(turns)]
        for question, answer in pairs:
            questions.append(
                {
                    "question_id": len(questions),
                    "image": name,
                    "text": f"{question}\n{SHORT_ANSWER}",
                    "category": "new photo" if new else "seen photo",
                    "answer": answer,
                }
            )
    (folder / "rows.json").write_text(json.dumps(rows, indent=1), "utf-8")
    lines = [json.dumps(question) for question in questions]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def _row(name: str, image: str, question: str, answer: str) -> dict[str, object]:
    turns = [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": name, "image": image, "conversations": turns}


if __name__ == "__main__":
    parser = ArgumentParser("python -m llava_lab.tiny_world.photos")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write")
    try:
        main(parser.parse_args().folder)
    except OSError as problem:
        parser.error(str(problem))
