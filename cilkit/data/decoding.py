"""From whatever an archive holds to uint8 (height, width, 3): one place for every odd kind of image.

grey, palette, CMYK  converted to RGB by PIL (no colour profile is applied, as in torchvision's loaders).
alpha                laid over white, the usual paper; dropping the channel shows whatever lies under it, often black.
16 bits a channel    divided by 257, so that black and white stay black and white; PIL's own conversion clips at 255.
EXIF orientation     applied: the picture stands as its photographer saw it. PIL-based pipelines of papers ignore it.
several frames       the first.
"""

import io

import numpy as np
from PIL import Image

from cilkit.errors import UserError

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # what undoes its values; from 5 on, height and width change places
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: "bytes | Image.Image | np.ndarray", where: str, shortest: int = 0) -> np.ndarray:
    """Pixels, uint8 (h, w, 3), of an encoded image, a PIL image or an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4).

    shortest: 0 decodes exactly; otherwise a JPEG may come at 1/2, 1/4 or 1/8 of its size, the smallest whose shorter
    side still has this many pixels (decoded so by libjpeg, which saves most of the time).
    UserError naming `where` for bytes that are no whole image.
    """
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 3 and data.shape[2] == 3:
        return data
    try:
        image = _opened(data)
        if shortest and isinstance(data, bytes):
            image.draft(None, (shortest, shortest))
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        return np.asarray(_rgb(image if turn is None else image.transpose(turn)))
    except MemoryError:
        raise
    except Exception as error:  # PIL raises many unrelated classes for damaged files
        reason = "it is empty (0 bytes)" if isinstance(data, bytes) and not data else str(error) or repr(error)
        raise UserError(
            f"{where} is not a readable image: {reason}; replace the file, or leave bad images out (bad_images='skip')"
        ) from error


def size_of(data: "bytes | Image.Image | np.ndarray") -> tuple[int, int]:
    """(height, width) of what `decode` gives, from the header alone. Raises what PIL raises for a damaged header."""
    image = _opened(data)
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _opened(data: "bytes | Image.Image | np.ndarray") -> Image.Image:
    """A PIL image, not decoded yet if it comes from bytes."""
    if isinstance(data, Image.Image):
        return data
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[:, :, 0] if data.ndim == 3 and data.shape[2] == 1 else data)
    return Image.open(io.BytesIO(data))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged notes beside a sound picture
        return 1
    return value if value in UPRIGHT else 1


def shrunk(pixels: np.ndarray, short: int = 0, square: int = 0) -> np.ndarray:
    """uint8 (h, w, 3) resized by PIL (bicubic, antialiased): the shorter side to at most `short`, or to a square."""
    height, width = pixels.shape[:2]
    if short and min(height, width) > short:  # the longer side cut off to whole pixels, as torchvision's Resize
        size = int(short * width / min(height, width)), int(short * height / min(height, width))
    elif square and (height, width) != (square, square):
        size = square, square
    else:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _rgb(image: Image.Image) -> Image.Image:
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if transparent:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, (h, w), as uint8."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UserError(f"its grey values go from {values.min()} to {values.max()}; expected whole numbers 0 … 65535")
    return np.round(values / 257).astype(np.uint8)
