"""3. Picture: an image file -> an 8-bit RGB image, or one message that says what is wrong."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from llava_lab.core.atomic import check_regular
from llava_lab.data.media.inside import content
from llava_lab.data.media.jpeg import check_jpeg, may_end_early
from llava_lab.data.media.png import check_png

# Far more than any image of the benchmarks; decoded, it is 400 MB.
MAX_PIXELS = 100_000_000
# Pillow cannot scale much longer lines.
MAX_SIDE = 4_000_000
# Modes that Pillow converts to RGB correctly.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0
# Least share of its range that an image of more than 8 bits must reach.
_REACH = 1 / 16


def load_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Read an image file as RGB of 8 bits.

    As in the released code, transparency is dropped, not blended, and the first frame or page is
    taken. A file that can be decoded only in part is refused:
    `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is set to False.

    Levels of more than 8 bits are scaled by the depth that the file declares, not by their values:
    the high byte of 16 bits (and of 32 bits from 0 to 65535), as Pillow does for 16-bit RGB, and
    the high 8 of 12 bits; floats from 0 to 1 times 255; 32-bit levels up to 255 as they are. Levels
    beyond these ranges, or below a sixteenth of them, are refused: 12-bit levels in a 16-bit file,
    for example, would become almost black.

    Args:
        path: The file, which may be inside of an archive.
        upright: Whether to rotate the image by its EXIF orientation. The released code does not, so
            published models saw such photographs rotated; transformers' loader does.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, is damaged, has levels that cannot be read, or is larger
            than `MAX_PIXELS` or `MAX_SIDE`.
    """
    path = Path(path)
    packed = content(path)
    if packed is None:
        check_regular(path, "image")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(path if packed is None else BytesIO(packed)) as image:
            return _read(image, path, packed, upright)
    except _UnreadableError as reason:
        raise ValueError(f"{path}: {reason}") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image, or of a format that Pillow cannot read") from error
    except Image.DecompressionBombError as error:
        size = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
        raise ValueError(f"{path}: {_too_large(size)}") from error
    except Exception as error:  # a decoder may raise anything for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{path}: not readable ({error.strerror})") from error
        raise ValueError(f"{path}: damaged or truncated image ({error})") from error


class _UnreadableError(ValueError):
    """Pillow opens an image that is refused all the same."""


def _read(
    image: ImageFile.ImageFile, path: Path, packed: bytes | None, upright: bool
) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise _UnreadableError(_too_large(f"{image.width}x{image.height} pixels"))
    if max(image.size) > MAX_SIDE:
        raise _UnreadableError(
            f"{image.width}x{image.height} pixels, a side has at most {MAX_SIDE}; cut the image"
        )
    if image.format == "EPS":
        raise _UnreadableError("Pillow runs another program to draw EPS; save it as PNG")
    if image.format == "PNG":
        with path.open("rb") if packed is None else BytesIO(packed) as file:
            check_png(file)
    image.load()
    if image.format in ("JPEG", "MPO") and may_end_early(image):
        check_jpeg(path.read_bytes() if packed is None else packed)
    return to_rgb(image, upright)


def to_rgb(image: Image.Image, upright: bool = False) -> Image.Image:
    """Convert an image in memory to 8-bit RGB, as `load_image` does.

    Args:
        image: The image.
        upright: Whether to rotate it by its EXIF orientation.

    Raises:
        ValueError: If its levels or its mode cannot be read.
    """
    turned = ImageOps.exif_transpose(image) if upright else image
    if image.mode in _MODES:
        return turned.convert("RGB")
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(turned, image)
    raise _UnreadableError(f"its mode {image.mode} is not read; save it as RGB of 8 bits")


def _too_large(size: str) -> str:
    return f"{size}, at most {MAX_PIXELS} are read; scale the image down"


def _eight_bits(levels: Image.Image, source: Image.Image) -> Image.Image:
    """Convert gray levels of more than 8 bits to RGB; `source` is the image with their depth."""
    values = np.asarray(levels)
    low, high = values.min(), values.max()
    tags = getattr(source, "tag_v2", {})
    if source.mode == "F":
        bits, full = None, 1
    else:
        bits = 12 if tags.get(_BITS_PER_SAMPLE) == (12,) else 16
        # Formats with levels of 16 bits; 32-bit levels of others may have 8.
        known = source.mode != "I" or source.format in ("PNG", "PPM")
        bits = bits if known or high > 255 else 8
        full = (1 << bits) - 1
    # Comparisons with NaN are false.
    if not (low >= 0 and high <= full) or (0 < high < full * _REACH and bits != 8):
        raise _UnreadableError(
            f"mode {source.mode}, levels from {low} to {high}: read are levels of 16 bits from 0 "
            "to 65535 and floats from 0 to 1 that reach a sixteenth of that; scale it to 8 bits"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = full - values
    values = np.rint(values * 255) if bits is None else values >> (bits - 8)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
