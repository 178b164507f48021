"""Image files as people have them: every kind decodes to the right pixels or is named with its reason."""
import io
import itertools
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from feeding import batches, examples
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


def pixels(file):
    image, windows = decode(file)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and windows is None
    return image


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
        assert np.array_equal(pixels(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


def windows_of(rng, height, width):
    """One to three windows, their sides and places of every size; one in four touches a border or spans the image."""
    h, w = 1 + (rng.random((2, rng.integers(1, 4))) ** 2 * [[height], [width]]).astype(int)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    kind = rng.integers(0, 16)
    if kind < 4:
        y, x = (0 * y, height - h, y, y)[kind], (x, x, 0 * x, width - w)[kind]
    elif kind == 4:
        y, x, h, w = 0 * y, 0 * x, 0 * h + height, 0 * w + width
    return np.stack([y, x, h, w], axis=1).astype(np.int32)


# Height, width, and how Pillow writes it. Blocks are 8 or 16 pixels a side: sides next to multiples of both.
CUT = [(97, 131, dict(subsampling=2)), (64, 128, dict(subsampling=2)), (33, 47, dict(subsampling=2, quality=30)),
       (97, 131, dict(subsampling=1)), (65, 63, dict(subsampling=1)), (97, 131, dict(subsampling=0)),
       (97, 131, dict(subsampling=2, progressive=True)), (49, 80, dict(subsampling=1, progressive=True)),
       (97, 131, dict(subsampling=0, progressive=True)), (97, 131, dict(subsampling=2, optimize=True, quality=95)),
       (71, 90, dict(grey=True)), (71, 90, dict(grey=True, progressive=True)), (5, 3, dict(subsampling=2)),
       (1, 1, dict(subsampling=2)), (1, 200, dict(subsampling=2)), (200, 2, dict(subsampling=2))]


@pytest.mark.parametrize("height,width,how", CUT, ids=str)
def test_a_part_of_a_jpeg_has_the_pixels_of_the_whole(height, width, how):
    """to the bit, wherever it is cut; of noise, so that every pixel and its colour tell."""
    rng, how = np.random.default_rng(height), dict(how)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    file = jpeg(noise[..., 0] if how.pop("grey", False) else noise, **how)
    whole = pixels(file)
    for _ in range(250):
        asked, wanted = [], windows_of(rng, height, width)
        part, windows = decode(file, lambda *size: asked.append(size) or wanted)
        assert asked == [(height, width)]
        least = (wanted[:, :2] + wanted[:, 2:]).max(0) - wanted[:, :2].min(0)
        # Columns beside, for the colours of those at the edges; nine of which the decoder spreads colours at all.
        assert part.shape[0] == least[0] and least[1] <= part.shape[1] <= max(least[1] + 2, 9)
        assert np.array_equal(windows[:, 2:], wanted[:, 2:])
        for (y, x, h, w), (v, u, _, _) in zip(wanted, windows):
            assert np.array_equal(part[v:v + h, u:u + w], whole[y:y + h, x:x + w]), (wanted.tolist(), (y, x, h, w))


@pytest.mark.parametrize("file", [
    saved(Image.fromarray(NOISE), "PNG"), saved(Image.fromarray(NOISE).convert("CMYK"), "JPEG", quality=95),
    saved(Image.fromarray(NOISE), "WEBP"), saved(Image.fromarray(NOISE).quantize(16), "PNG")],
    ids=["png", "cmyk", "webp", "palette"])
def test_a_part_of_other_pictures_has_the_pixels_of_the_whole(file):
    rng, whole = np.random.default_rng(0), pixels(file)
    for _ in range(40):
        wanted = windows_of(rng, 37, 53)
        part, windows = decode(file, lambda height, width: wanted)
        for (y, x, h, w), (v, u, _, _) in zip(wanted, windows):
            assert np.array_equal(part[v:v + h, u:u + w], whole[y:y + h, x:x + w])


@pytest.mark.parametrize("damage", ["cut off", "ended", "hole", "overwritten"])
def test_what_a_damaged_jpeg_gives_does_not_depend_on_when_it_is_met(tmp_path, damage):
    """A picture of which the lower half is lost, cut anew in every epoch: a run that starts at an epoch must see in it
    what one sees that has met the picture before."""
    whole = jpeg(np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8))
    half = len(whole) // 2
    content = {"cut off": whole[:half], "ended": whole[:half] + b"\xff\xd9", "hole": whole[:half] + whole[half + 2000:],
               "overwritten": whole[:half] + b"\xff\xfe" * 300 + whole[half + 600:]}[damage]
    write_folder(tmp_path, 2, {"g000_cut.jpg": content})

    def made(*tops):
        source = folder.make(root=str(tmp_path), max_bad=0.5, memory=0.0)
        found = [source.read(1, lambda height, width: np.array([[y, 2, 6, 10]], np.int32) % height) for y in tops]
        return found[-1].index, found[-1].image.tobytes()

    for first, then in ((140, 0), (0, 140)):
        assert made(first, then) == made(then), "another example stands in, or none, by what was read before"
    assert made(0)[0] == made(140)[0] == (2 if damage == "cut off" else 1)  # the same for all parts of it


def test_kinds_of_files_decode_to_their_pixels():
    rgb = Image.fromarray(SMOOTH)
    lossless = {"png": saved(rgb, "PNG"), "bmp": saved(rgb, "BMP"), "tiff": saved(rgb, "TIFF"),
                "webp": saved(rgb, "WEBP", lossless=True)}
    for kind, file in lossless.items():
        assert np.array_equal(pixels(file), SMOOTH), kind
    grey = SMOOTH[..., 0]
    assert np.array_equal(pixels(saved(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, 2))
    one = np.array([[[9, 8, 7]]], np.uint8)
    assert np.array_equal(pixels(saved(Image.fromarray(one), "PNG")), one)
    assert pixels(jpeg(one)).shape == (1, 1, 3)


def test_cmyk_jpeg_has_the_colours_of_its_rgb():
    file = saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels(file).astype(int) - SMOOTH).mean() < 3


def test_sixteen_bits_keep_the_high_byte():
    deep = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 85
    for format in ("PNG", "TIFF"):
        got = pixels(saved(Image.fromarray(deep), format))
        assert got.dtype == np.uint8 and np.array_equal(got, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))


def test_alpha_is_dropped_and_palettes_are_looked_up():
    rgba = np.dstack([SMOOTH, np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)])
    assert np.array_equal(pixels(saved(Image.fromarray(rgba), "PNG")), SMOOTH)
    palette = Image.fromarray(SMOOTH).quantize(16)
    wanted = np.asarray(palette.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(saved(palette, "PNG", transparency=bytes(range(16)))), wanted)
    assert np.array_equal(pixels(saved(palette, "PNG")), wanted)


def test_first_picture_of_an_animation():
    frames = [Image.fromarray(np.full((6, 7, 3), v, np.uint8)) for v in (200, 10)]
    for format in ("GIF", "WEBP"):
        image = pixels(saved(frames[0], format, save_all=True, append_images=frames[1:]))
        assert image.shape == (6, 7, 3) and np.abs(image.astype(int) - 200).max() <= 2


def test_orientation_is_as_stored():
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright: "turn by 90 degrees"
    assert np.array_equal(pixels(jpeg(exif=exif)), pixels(jpeg()))


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


@pytest.mark.scorecard(35)
def test_a_run_goes_on_over_bad_files_and_names_them(tmp_path):
    """shapes stay, the slot keeps its id, the next good file stands in, each bad one is named once."""
    spoiled = write_folder(tmp_path, 51, {**ODD, **SPOILED})
    spoiled = [p for p in spoiled if any(p.endswith(n) for n in SPOILED)]
    source = folder.make(root=str(tmp_path), max_bad=0.07)
    assert source.size == 60 and source.problems() == []
    epoch = list(itertools.islice(batches(source, VIEWS, batch=20, seed=0), 6))
    assert {b["views"].shape for b in epoch} == {(20, 1, 8, 8, 3)}
    assert sorted(i for b in epoch[:3] for i, _ in b["id"]) == list(range(60))
    assert [p.split(": ")[0] for p in source.problems()] == spoiled
    assert "empty" in source.problems()[0] and "not a" in source.problems()[1]
    paths = sorted(p.name for p in tmp_path.iterdir())
    for bad, stand_in in [("g007_cut.jpg", "g008.jpg"), ("g005_empty.jpg", "g006.jpg")]:
        shade = next(float(b["views"][row].mean()) for b in epoch[:3] for row in range(20)
                     if b["id"][row, 0] == paths.index(bad))
        assert abs(shade * 255 - int(stand_in[1:4])) < 2
    again = list(itertools.islice(batches(folder.make(root=str(tmp_path), max_bad=0.07), VIEWS, batch=20, seed=0,
                                               start_step=4, workers=1), 2))
    assert all(np.array_equal(a["views"], b["views"]) for a, b in zip(epoch[4:], again))


def test_bad_files_are_left_out_of_evaluation(tmp_path):
    write_folder(tmp_path, 20, {"g005_empty.jpg": b"", "g006_text.jpg": b"hello"})
    source = folder.make(root=str(tmp_path), max_bad=0.1)
    seen = [int(i) for b in examples(source, EVAL, batch=6) for i, _ in b["id"]]
    assert len(seen) == 20 and sorted(set(range(22)) - set(seen)) == [6, 8] and len(source.problems()) == 2


@pytest.mark.scorecard(35)
@pytest.mark.parametrize("start", [lambda s: batches(s, VIEWS, batch=10, seed=0),
                                   lambda s: examples(s, EVAL, batch=10)])
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
                    next(examples(source, EVAL, batch=3))
            else:
                assert len(next(examples(source, EVAL, batch=3))["label"]) == 2
    with pytest.raises(UsageError, match="max_bad=2"):
        folder.make(root=str(tmp_path), max_bad=2.0)


def test_a_file_that_vanishes_is_a_bad_file(tmp_path):
    write_folder(tmp_path, 5, {})
    source = folder.make(root=str(tmp_path), max_bad=0.2)
    (tmp_path / "g002.jpg").unlink()
    assert sum(len(b["label"]) for b in examples(source, EVAL, batch=5)) == 4
    assert source.problems() == [f"{tmp_path / 'g002.jpg'}: No such file or directory"]
