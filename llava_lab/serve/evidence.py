"""Evidence: captions of pictures and videos -> questions whose answers a judge can score.

LLaVA-Hound (arXiv:2404.01258) lets a judge that reads text alone score answers about a video: a
detailed caption stands for what it shows.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llava_lab.core.messages import listed
from llava_lab.data.fields import read_media, read_messages
from llava_lab.data.questions import Question
from llava_lab.data.rows import FileRow, Refused, read_rows
from llava_lab.data.source import parse_rows


def with_captions(
    questions: Sequence[Question], files: Sequence[Path], images: Path
) -> list[Question]:
    """Give every question the caption of what it asks about.

    Args:
        questions: Questions about one image or video each.
        files: Rows that describe them, as `caption` writes, a file a shard: the first answer of a
            row is the caption of its image or video.
        images: Folder that the names of questions and captions start from.

    Raises:
        ValueError: If rows are not usable, two describe one picture in different words, or a
            question has no caption, or one of its own.
    """
    captions: dict[str, str] = {}
    for path in files:
        rows, bad = parse_rows(read_rows(path), _caption)
        if bad:
            raise ValueError(
                f"{path}: {len(bad)} rows are no captions:\n  {listed(list(map(str, bad)), 10)}"
            )
        for name, caption in rows:
            if captions.setdefault(name, caption) != caption:
                raise ValueError(f"{path}: {name} has several captions; keep one of them")
    found, lacking = [], []
    for question in questions:
        names = [str(each.relative_to(images.absolute())) for each in question.images]
        caption = captions.get(names[0]) if len(names) == 1 else None
        if question.caption is not None:
            lacking.append(f"{question.source}: has a `caption` of its own")
        elif caption is None:
            lacking.append(f"{question.source}: {', '.join(names) or 'no picture'}")
        else:
            found.append(replace(question, caption=caption))
    if lacking:
        raise ValueError(
            f"{', '.join(map(str, files))}: {len(lacking)} of {len(questions)} questions "
            f"cannot get their caption there:\n  {listed(lacking, 10)}"
        )
    return found


def _caption(row: FileRow) -> tuple[str, str]:
    """Name of a row's image or video, and its caption."""
    names, video = read_media(row.value)
    names = names if video is None else [video]
    if len(names) != 1:
        raise Refused(f"shows {len(names)} images; a caption is of one image or video")
    return names[0], read_messages(row.value)[1][1].strip()
