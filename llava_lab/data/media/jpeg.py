"""3. JPEG: refuse a JPEG file whose pixel data end early, which Pillow does not notice."""

import io
import re
from collections.abc import Iterator

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

# A marker that is neither stuffing nor a restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START, _END, _SCAN, _PROGRESSIVE, _ALONE = 0xD8, 0xD9, 0xDA, 0xC2, 0x01
# Level that libjpeg returns where data are missing.
_GRAY = 128


def may_end_early(image: Image.Image) -> bool:
    """Whether `check_jpeg` is needed: for a progressive file, or if the last row is all gray.

    Args:
        image: The JPEG as Pillow loaded it.
    """
    last = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get("progressive")) or bool((np.asarray(last) == _GRAY).all())


def check_jpeg(data: bytes) -> None:
    """Refuse a JPEG that was cut and closed again, or whose end is overwritten.

    Pillow refuses a file that is cut. If an end marker follows the rest, as in files that were
    repaired or filled with zeros, it returns gray pixels, or a blur for a progressive file.

    Args:
        data: The file's bytes.

    Raises:
        ValueError: If a progressive file lacks scans, or FFmpeg cannot decode another to its end.
    """
    least: dict[int, list[int]] = {}
    for kind, segment in _segments(data):
        if kind == _PROGRESSIVE:
            least = {number: [1] * 64 for number in segment[6::3]}
        elif kind == _SCAN and least:
            number, (first, last, bits) = segment[0], segment[-3:]
            for component in segment[1 : 1 + 2 * number : 2]:
                least.setdefault(component, [1] * 64)[first : last + 1] = [bits & 15] * (
                    last + 1 - first
                )
    if any(any(bits) for bits in least.values()):
        raise ValueError("scans are missing at its end")
    if not least:
        _decode(data)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of each segment, up to the end marker."""
    place = 0
    while found := _MARKER.search(data, place):
        kind, place = found[0][1], found.end()
        if kind == _END:
            return
        if kind in (_START, _ALONE):
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        yield kind, data[place + 2 : place + length]
        place += length


def _decode(data: bytes) -> None:
    try:
        with av.open(io.BytesIO(data), "r", format="jpeg_pipe") as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            for _ in container.decode(stream):
                pass
    except FFmpegError as error:
        raise ValueError("data are missing at its end") from error
