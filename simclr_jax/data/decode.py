"""From the bytes of an image file to u8[H,W,3], by what the bytes are and not by what the file is called.

What is decided here, and why:

- JPEG goes through TensorFlow's decoder with the accurate integer DCT: the same pixels as Pillow and about its speed,
  but without Pillow's Python code for opening and unpacking, which threads cannot share. Everything else is Pillow's.
- Orientation in EXIF is not applied: pixels are as stored, as in TFDS, `tf.io.decode_jpeg` and torchvision's
  `ImageFolder`, so that features compare with those of other tools.
- Alpha is dropped, palettes are looked up and CMYK is converted as `PIL.Image.convert("RGB")` does, like torchvision.
- 16-bit grey keeps its high byte. (Pillow's own conversion would clip nearly every pixel to white.)
- Of an animation, or of a file of several pages, the first picture counts.
- Truncated files are refused, not filled up with grey. Pictures of more than MAX_PIXELS are refused unopened.
"""
import io

import numpy as np

from simclr_jax.data.host_tf import tensorflow

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MiB of RGB


def decode(data: bytes, cut=None) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture in an image file, or the part of it that is wanted.

    Args:
      data: the bytes of a JPEG, PNG, BMP, GIF, WebP or TIFF file.
      cut: (height, width) -> windows i32[n, 4]: y, x, height, width. Of a JPEG no more is then decoded than the blocks
        that these touch.

    Returns:
      (u8[H,W,3] RGB, None), or with `cut` (a part that holds all windows, the windows in that part). The pixels in the
      windows are those of the whole picture, whatever is cut.

    Raises:
      ValueError: the bytes are no such picture, or not a whole one, or too large; the message says which.
    """
    if not data:
        raise ValueError("the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        found = _jpeg(data, cut)
        if found is not None:
            return found
    image = _pillow(data)
    if cut is None:
        return image, None
    (y, x, h, w), windows = part(cut(*image.shape[:2]), *image.shape[:2])
    return image[y:y + h, x:x + w], windows


def _jpeg(data, cut):
    """Grey and YCbCr JPEG; None where Pillow has to see for itself, be it only to say what is wrong."""
    tf = tensorflow()
    try:
        shape = plain_jpeg(data)
        if shape is None:
            return None
        height, width = shape
        if cut is None:
            return tf.raw_ops.DecodeJpeg(contents=data, channels=3, dct_method="INTEGER_ACCURATE").numpy(), None
        box, windows = part(cut(height, width), height, width)
        return in_graph(data, box).numpy(), windows
    except tf.errors.OpError:
        return None


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that TensorFlow's decoder may have: grey or YCbCr, of a known size, with its end.

    None for any other. One that is cut off goes to Pillow, whole, so that it is refused whatever part of it is wanted.
    TensorFlow has an op for the size, at five times the cost.
    """
    if data[:3] != b"\xff\xd8\xff" or b"\xff\xd9" not in data[-64:]:  # some writers pad
        return None
    at, end = 2, len(data) - 9
    while at < end:
        if data[at] != 0xFF:
            break
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # tables and extensions, not frames
            height, width = (data[at + 5] << 8) + data[at + 6], (data[at + 7] << 8) + data[at + 8]
            good = data[at + 9] in (1, 3) and 0 < height * width <= MAX_PIXELS
            return (height, width) if good else None
        # Fill bytes stand alone; all other segments before the frame carry their length.
        at += 1 if kind == 0xFF else 2 + (data[at + 2] << 8) + data[at + 3]
    return None


def in_graph(data, box):
    """u8[h, w, 3]: the part `box` (i32[4]: y, x, height, width) of a `plain_jpeg`, decoded within a tf.data graph."""
    return tensorflow().raw_ops.DecodeAndCropJpeg(contents=data, crop_window=box, channels=3,
                                                  dct_method="INTEGER_ACCURATE")


def part(windows, height: int, width: int):
    """(i32[4], windows): the part of a picture that holds all windows, and where they are in that part.

    Colour is stored at half the width and spread over neighbours. The columns at the edges of what is decoded lack one,
    so the part has a column more on either side; and of a part of fewer than six columns colours are not spread at all
    (libjpeg-turbo, jdsample.c), so that it has eight, if the picture has.
    """
    y, x = windows[:, :2].min(axis=0)
    end_y, end_x = (windows[:, :2] + windows[:, 2:]).max(axis=0)
    x, end_x = max(x - 1, 0), min(max(end_x + 1, x + 8), width)
    x = max(min(x, end_x - 8), 0)
    return np.array([y, x, end_y - y, end_x - x], np.int32), windows - np.array([y, x, 0, 0], windows.dtype)


def _pillow(data):
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS} pixels")
        return np.asarray(_rgb(image))
    except UnidentifiedImageError:
        raise ValueError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter where warnings are errors
        raise ValueError(f"more than {MAX_PIXELS} pixels") from None
    except (OSError, SyntaxError, EOFError, IndexError, TypeError, OverflowError, MemoryError) as e:
        raise ValueError(f"damaged: {str(e) or type(e).__name__}") from None  # Pillow's plugins raise all of these


def _rgb(image):
    if image.mode == "F":
        raise ValueError("its pixels are floating point, of no known range")
    if image.mode.startswith("I"):  # I;16, I;16B, I;16L, and I for 16 bits in some formats
        from PIL import Image

        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same pixels, without a warning of Pillow's on each file
    return image.convert("RGB")
