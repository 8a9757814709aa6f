"""3. PNG: whether the pixels of a PNG file are whole, which Pillow does not say."""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Samples a pixel by colour type: gray, RGB, palette, gray with alpha, RGBA.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row of each of Adam7's passes, and the steps between their columns and rows.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_BLOCK = 1 << 20


def check_png(file: BinaryIO) -> None:
    """Check the checksums of a PNG's critical chunks, and that its data fill all of its rows.

    Pillow reads what it can of compressed data and leaves the rest black. This decompresses the
    data once more, without keeping it: about a third more time for a PNG.

    Raises:
        ValueError: If a checksum is wrong, or data are missing.
    """
    file.seek(len(SIGNATURE))
    header = _header(file)
    wanted = _data_bytes(header)
    decoder, found = zlib.decompressobj(), 0
    for data in _image_data(file):
        while data and not decoder.eof and found <= wanted:
            try:
                found += len(decoder.decompress(data, _BLOCK))
            except zlib.error as error:
                raise ValueError(f"its compressed data are damaged: {error}") from None
            data = decoder.unconsumed_tail
    if found < wanted or (found == wanted and not decoder.eof):
        raise ValueError(f"{found} of {wanted} bytes of pixel data are there")


def _header(file: BinaryIO) -> bytes:
    kind, data = _chunk(file)
    if kind != b"IHDR" or len(data) != 13:
        raise ValueError("it does not begin with a header")
    return data


def _data_bytes(header: bytes) -> int:
    """Bytes of all rows before compression, a filter byte for each row included."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _SAMPLES[color]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _image_data(file: BinaryIO) -> Iterator[bytes]:
    """Contents of the IDAT chunks, which follow each other without a break."""
    started = False
    while True:
        kind, data = _chunk(file)
        if kind == b"IDAT":
            started = True
            yield data
        elif started or kind == b"IEND":
            return


def _chunk(file: BinaryIO) -> tuple[bytes, bytes]:
    """Kind and contents of the next chunk; a file without its end mark ends here, too."""
    start = file.read(8)
    if not start:
        return b"IEND", b""
    if len(start) < 8:
        raise ValueError("it is cut short")
    length, kind = struct.unpack(">I4s", start)
    data, checksum = file.read(length), file.read(4)
    if len(data) < length or len(checksum) < 4:
        raise ValueError(f"its chunk {kind.decode('latin1')} is cut short")
    # Ancillary chunks, whose names begin with a small letter, do not make the pixels.
    if kind[:1].isupper() and zlib.crc32(kind + data) != int.from_bytes(checksum, "big"):
        raise ValueError(f"the checksum of its chunk {kind.decode('latin1')} is wrong")
    return kind, data
