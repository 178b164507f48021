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


def decode(data: bytes) -> np.ndarray:
    """The picture in an image file.

    Args:
      data: the bytes of a JPEG, PNG, BMP, GIF, WebP or TIFF file.

    Returns:
      u8[H,W,3], RGB.

    Raises:
      ValueError: the bytes are no such picture, or not a whole one, or too large; the message says which.
    """
    if not data:
        raise ValueError("the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        image = _jpeg(data)
        if image is not None:
            return image
    return _pillow(data)


def _jpeg(data):
    """Grey and YCbCr JPEG; None where Pillow has to see for itself, be it only to say what is wrong."""
    tf = tensorflow()
    try:
        height, width, channels = map(int, tf.raw_ops.ExtractJpegShape(contents=data).numpy())
        if channels == 4 or height * width > MAX_PIXELS:
            return None
        return tf.raw_ops.DecodeJpeg(contents=data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    except tf.errors.OpError:
        return None


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
