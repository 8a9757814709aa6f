"""12. Write: training rows and questions with their answers -> one page."""

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from llava_lab.core.atomic import write
from llava_lab.report.formats import STYLE
from llava_lab.report.look.asked import Looked, Questions
from llava_lab.report.look.pictures import Map
from llava_lab.report.look.rows import Row
from llava_lab.report.page.templates import environment, text_of


def write_look(title: str, rows: Sequence[Row], questions: Questions | None, path: Path) -> None:
    """Write one HTML page.

    Args:
        title: What it is of.
        rows: Training rows.
        questions: Questions with one or two runs' answers, or None.
        path: The page.
    """
    text = (
        environment()
        .get_template("look/look.html")
        .render(
            title=title,
            rows=rows,
            questions=questions,
            data=_data,
            style=Markup(STYLE + text_of("page/page.css") + text_of("look/look.css")),
            script=Markup(text_of("look/look.js")),
        )
    )
    write(path, text)


def _data(looked: Looked) -> Markup:
    """Weights for the page's script: each kind and token as bytes, 255 the largest of them."""
    weights = looked.attention.weights
    most = weights.max(-1, initial=0.0)
    codes = (255 * weights / np.maximum(most, 1e-12)[..., None]).round().astype(np.uint8)
    maps, before = [], 0
    for image in looked.images:
        maps += [_map(each, before) for each in image]
        before += sum(each.tokens for each in image)
    content: dict[str, Any] = {
        "kinds": looked.attention.kinds,
        "tokens": looked.attention.tokens,
        "visual": weights.shape[-1],
        "most": [[float(f"{each:.4g}") for each in row] for row in most],
        "sums": [[float(f"{each:.4g}") for each in row] for row in weights.sum(-1)],
        "codes": b64encode(codes.tobytes()).decode(),
        "maps": maps,
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _map(each: Map, before: int) -> dict[str, Any]:
    step = each.columns + (each.newline == "row")
    known = {"first": before + each.first + each.skipped, "rows": each.rows, "step": step}
    return {**known, "columns": each.columns, "drawn": each.drawn}
