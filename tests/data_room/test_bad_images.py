"""Image files as people have them: every kind decodes to the right pixels or is named with its reason."""
import io
import itertools
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from simclr_jax import data
from simclr_jax.data.decode import decode
from simclr_jax.data.sources import folder
from simclr_jax.errors import UsageError

NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
SMOOTH = np.stack([*np.meshgrid(np.linspace(0, 255, 32), np.linspace(255, 0, 24)), np.full((24, 32), 90.0)], -1)
SMOOTH = SMOOTH.astype(np.uint8)
VIEWS = ((("random_resized_crop", dict(size=8)), ("flip", {})),)
EVAL = (("resize", dict(size=8)),)


def saved(image, format, **kwargs):
    file = io.BytesIO()
    image.save(file, format, **kwargs)
    return file.getvalue()


def jpeg(array=SMOOTH, **kwargs):
    return saved(Image.fromarray(array), "JPEG", **kwargs)


def bomb(side):
    """A valid PNG of side x side black pixels in a few bytes a row."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(  # noqa: E731
        ">I", zlib.crc32(kind + body))
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def jpeg_claiming(side):
    """A JPEG whose header says side x side; nothing of it may be allocated."""
    good = bytearray(jpeg())
    start = good.index(b"\xff\xc0")
    good[start + 5:start + 9] = struct.pack(">HH", side, side)
    return bytes(good)


def test_jpeg_fast_path_equals_pillow():
    for array, kwargs in [(SMOOTH, {}), (NOISE, dict(quality=60)),
                          (SMOOTH, dict(progressive=True)), (SMOOTH, dict(subsampling=0)), (SMOOTH[..., 0], {})]:
        file = jpeg(array, **kwargs)
        assert np.array_equal(decode(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


def test_kinds_of_files_decode_to_their_pixels():
    rgb = Image.fromarray(SMOOTH)
    lossless = {"png": saved(rgb, "PNG"), "bmp": saved(rgb, "BMP"), "tiff": saved(rgb, "TIFF"),
                "webp": saved(rgb, "WEBP", lossless=True)}
    for kind, file in lossless.items():
        assert np.array_equal(decode(file), SMOOTH), kind
    grey = SMOOTH[..., 0]
    assert np.array_equal(decode(saved(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, 2))
    one = np.array([[[9, 8, 7]]], np.uint8)
    assert np.array_equal(decode(saved(Image.fromarray(one), "PNG")), one)
    assert decode(jpeg(one)).shape == (1, 1, 3)


def test_cmyk_jpeg_has_the_colours_of_its_rgb():
    file = saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(file).astype(int) - SMOOTH).mean() < 3


def test_sixteen_bits_keep_the_high_byte():
    deep = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 85
    for format in ("PNG", "TIFF"):
        got = decode(saved(Image.fromarray(deep), format))
        assert got.dtype == np.uint8 and np.array_equal(got, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))


def test_alpha_is_dropped_and_palettes_are_looked_up():
    rgba = np.dstack([SMOOTH, np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)])
    assert np.array_equal(decode(saved(Image.fromarray(rgba), "PNG")), SMOOTH)
    palette = Image.fromarray(SMOOTH).quantize(16)
    wanted = np.asarray(palette.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(saved(palette, "PNG", transparency=bytes(range(16)))), wanted)
    assert np.array_equal(decode(saved(palette, "PNG")), wanted)


def test_first_picture_of_an_animation():
    frames = [Image.fromarray(np.full((6, 7, 3), v, np.uint8)) for v in (200, 10)]
    for format in ("GIF", "WEBP"):
        image = decode(saved(frames[0], format, save_all=True, append_images=frames[1:]))
        assert image.shape == (6, 7, 3) and np.abs(image.astype(int) - 200).max() <= 2


def test_orientation_is_as_stored():
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright: "turn by 90 degrees"
    assert np.array_equal(decode(jpeg(exif=exif)), decode(jpeg()))


@pytest.mark.parametrize("content, reason", [
    (b"", "empty"), (b"just some words", "not a JPEG"), (jpeg()[:300], "damaged|not a"), (jpeg()[:-60], "damaged"),
    (saved(Image.fromarray(NOISE), "PNG")[:-80], "damaged"), (b"\xff\xd8\xff" + b"noise" * 20, "damaged|not a"),
    (bomb(10_000), "more than 89478485"), (bomb(20_000), "more than"), (jpeg_claiming(60_000), "more than"),
    (saved(Image.fromarray(SMOOTH[..., 0].astype(np.float32)), "TIFF"), "floating"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a")])
def test_bad_files_are_refused_with_a_reason(content, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match=reason):
            decode(content)


def write_folder(root, good, bad):
    """Good files g000.jpg.. of one shade each, spoiled files by name; returns the paths of the spoiled, sorted."""
    for i in range(good):
        (root / f"g{i:03}.jpg").write_bytes(jpeg(np.full((12, 14, 3), i, np.uint8), quality=100))
    for name, content in bad.items():
        (root / name).write_bytes(content)
    return sorted(str(root / name) for name in bad)


ODD = {"g000_cmyk.JPG": saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG"),
       "g001_deep.png": saved(Image.fromarray(np.zeros((5, 6), np.uint16)), "PNG"),
       "g002_dot.jpg": jpeg(SMOOTH[:1, :1]), "g003_png.jpg": saved(Image.fromarray(SMOOTH), "PNG"),
       "g004.gif": saved(Image.fromarray(SMOOTH), "GIF", save_all=True, append_images=[Image.fromarray(SMOOTH[::-1])])}
SPOILED = {"g005_empty.jpg": b"", "g006_text.jpg": b"hello", "g007_cut.jpg": jpeg()[:-100],
           "g008_bomb.png": bomb(20_000)}


def test_a_run_goes_on_over_bad_files_and_names_them(tmp_path):
    """shapes stay, the slot keeps its id, the next good file stands in, each bad one is named once."""
    spoiled = write_folder(tmp_path, 51, {**ODD, **SPOILED})
    spoiled = [p for p in spoiled if any(p.endswith(n) for n in SPOILED)]
    source = folder.make(root=str(tmp_path), max_bad=0.07)
    assert source.size == 60 and source.problems() == []
    epoch = list(itertools.islice(data.batches(source, VIEWS, batch=20, seed=0), 6))
    assert {b["views"].shape for b in epoch} == {(20, 1, 8, 8, 3)}
    assert sorted(i for b in epoch[:3] for i, _ in b["id"]) == list(range(60))
    assert [p.split(": ")[0] for p in source.problems()] == spoiled
    assert "empty" in source.problems()[0] and "not a" in source.problems()[1]
    paths = sorted(p.name for p in tmp_path.iterdir())
    for bad, stand_in in [("g007_cut.jpg", "g008.jpg"), ("g005_empty.jpg", "g006.jpg")]:
        shade = next(float(b["views"][row].mean()) for b in epoch[:3] for row in range(20)
                     if b["id"][row, 0] == paths.index(bad))
        assert abs(shade * 255 - int(stand_in[1:4])) < 2
    again = list(itertools.islice(data.batches(folder.make(root=str(tmp_path), max_bad=0.07), VIEWS, batch=20, seed=0,
                                               start_step=4, workers=1), 2))
    assert all(np.array_equal(a["views"], b["views"]) for a, b in zip(epoch[4:], again))


def test_bad_files_are_left_out_of_evaluation(tmp_path):
    write_folder(tmp_path, 20, {"g005_empty.jpg": b"", "g006_text.jpg": b"hello"})
    source = folder.make(root=str(tmp_path), max_bad=0.1)
    seen = [int(i) for b in data.examples(source, EVAL, batch=6) for i, _ in b["id"]]
    assert len(seen) == 20 and sorted(set(range(22)) - set(seen)) == [6, 8] and len(source.problems()) == 2


@pytest.mark.parametrize("start", [lambda s: data.batches(s, VIEWS, batch=10, seed=0),
                                   lambda s: data.examples(s, EVAL, batch=10)])
def test_too_many_bad_files_stop_the_run_with_the_list(tmp_path, start):
    """above the limit, one line with the count, the limit and the first five."""
    spoiled = write_folder(tmp_path, 80, {f"b{i}.jpg": b"" for i in range(8)})
    with pytest.raises(UsageError) as e:
        for _ in itertools.islice(start(folder.make(root=str(tmp_path), max_bad=0.07)), 30):
            pass
    message = str(e.value)
    assert "8 images cannot be read" in message and "max_bad=0.07 allows 7 of 88" in message
    assert sum(p in message for p in spoiled) == 5 and "\n" not in message


def test_limits_at_the_ends(tmp_path):
    write_folder(tmp_path, 2, {"bad.jpg": b""})
    for max_bad, stops in [(0.0, True), (0.01, False)]:  # 1% of few files is one file; 0 is none
        for memory in (0.0, 1.0):
            source = folder.make(root=str(tmp_path), max_bad=max_bad, memory=memory)
            if stops:
                with pytest.raises(UsageError, match="1 images cannot be read"):
                    next(data.examples(source, EVAL, batch=3))
            else:
                assert len(next(data.examples(source, EVAL, batch=3))["label"]) == 2
    with pytest.raises(UsageError, match="max_bad=2"):
        folder.make(root=str(tmp_path), max_bad=2.0)


def test_a_file_that_vanishes_is_a_bad_file(tmp_path):
    write_folder(tmp_path, 5, {})
    source = folder.make(root=str(tmp_path), max_bad=0.2)
    (tmp_path / "g002.jpg").unlink()
    assert sum(len(b["label"]) for b in data.examples(source, EVAL, batch=5)) == 4
    assert source.problems() == [f"{tmp_path / 'g002.jpg'}: No such file or directory"]
