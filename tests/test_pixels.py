"""Image files: every kind of pixel against values known by hand, and every way to be unreadable."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from bnn_jax import pixels
from bnn_jax.types import UserError

HINT = ", or pass --skip-bad to leave it out"


def colours(width=37, height=29) -> np.ndarray:
    """A smooth colour picture, which every format compresses well: (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([6 * x, 8 * y, 255 - 3 * (x + y)], axis=-1).astype(np.uint8)


def save(path, image, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


# pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_back_what_was_saved(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    colour = colours()
    found = pixels.read(save(tmp_path / f"a.{suffix}", colour, **options))
    np.testing.assert_array_equal(found, colour)
    assert found.dtype == np.uint8
    if suffix != "webp":  # which knows no grey
        grey = colour[..., 0]
        found = pixels.read(save(tmp_path / f"b.{suffix}", grey))
        np.testing.assert_array_equal(found, grey[..., None])


def test_the_content_counts_and_not_the_suffix(tmp_path):
    found = pixels.read(save(tmp_path / "a.jpeg", colours(), format="png"))
    np.testing.assert_array_equal(found, colours())


def test_palette(tmp_path):
    """Four colours stay exact; a palette of greys makes a grey picture, and one colour more an RGB one."""
    index = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4
    table = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    for name, entries, channels in (("a", table, 3), ("b", table[[3, 3, 3, 3]] * [[1], [2], [3], [4]], 1)):
        image = Image.fromarray(index, "L").copy()
        image.putpalette(entries.astype(np.uint8).tobytes())
        assert image.mode == "P"
        for suffix in ("png", "gif"):
            found = pixels.read(save(tmp_path / f"{name}.{suffix}", image))
            np.testing.assert_array_equal(found, entries[index][..., :channels])


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.eye(5, dtype=bool)
    found = pixels.read(save(tmp_path / "a.png", bits))
    np.testing.assert_array_equal(found, 255 * bits[..., None])


def test_transparency_is_black_behind_the_picture(tmp_path):
    """Opaque, half and fully transparent pixels: c, round(c a / 255) and 0; greys stay grey."""
    colour = np.full((1, 3, 3), [200, 100, 50], np.uint8)
    alpha = np.array([[255, 128, 0]], np.uint8)
    expected = np.array([[[200, 100, 50], [100, 50, 25], [0, 0, 0]]])
    found = pixels.read(save(tmp_path / "a.png", np.dstack([colour, alpha])))
    assert np.abs(found.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(found[:, [0, 2]], expected[:, [0, 2]])
    grey = Image.fromarray(np.dstack([colour[..., 0], alpha]), "LA")
    found = pixels.read(save(tmp_path / "b.png", grey))
    np.testing.assert_allclose(found, expected[..., :1], atol=1)
    index = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    index.putpalette([200, 100, 50, 0, 0, 255, 7, 7, 7])
    found = pixels.read(save(tmp_path / "c.gif", index, transparency=1))
    np.testing.assert_array_equal(found, [[[200, 100, 50], [0, 0, 0], [7, 7, 7]]])


def test_cmyk_is_turned_into_rgb(tmp_path):
    """Pure inks: no ink is white, cyan lacks red, full black is black; within the loss of a JPEG."""
    inks = np.repeat([[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255]], 16, axis=0)
    image = Image.fromarray(np.repeat(inks[None].astype(np.uint8), 16, axis=0), "CMYK")
    found = pixels.read(save(tmp_path / "a.jpg", image, quality=100))
    expected = np.repeat([[255, 255, 255], [0, 255, 255], [255, 0, 255], [0, 0, 0]], 16, axis=0)
    assert found.shape == (16, 64, 3)
    assert np.abs(found.astype(int) - expected).max() <= 4


def tagged(path, tag, value):
    """A TIFF file with one of its tags changed, which Pillow does not do when it saves."""
    raw = bytearray(path.read_bytes())
    entry = tag.to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert raw.count(entry) == 1
    raw[raw.index(entry) + 8] = value
    path.write_bytes(raw)
    return path


SAMPLE_FORMAT, PHOTOMETRIC = 339, 262
DEPTHS = {  # the stored type: (values, how it is saved, its largest value)
    "16-bit PNG": ([0, 1, 257, 32768, 65535], np.uint16, "png", 65535),
    "16-bit TIFF": ([0, 1, 257, 32768, 65535], np.uint16, "tiff", 65535),
    "signed 16-bit TIFF": ([0, 1, 257, 2**14, 32767], np.int16, "tiff", 32767),
    "signed 32-bit TIFF": ([0, 1, 2**23, 2**30, 2**31 - 1], np.int32, "tiff", 2**31 - 1),
    "unsigned 32-bit TIFF": ([0, 1, 2**24, 2**31, 2**32 - 1], np.uint32, "tiff", 2**32 - 1),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_deep_grey_is_scaled_by_the_range_of_its_type(tmp_path, name):
    values, dtype, suffix, top = DEPTHS[name]
    stored = np.array([values], dtype)
    as_saved = {np.int16: np.uint16, np.uint32: np.int32}.get(dtype, dtype)  # which Pillow has
    image = Image.fromarray(stored.view(as_saved))
    if name.startswith("signed 16"):
        path = save(tmp_path / "a.tiff", image, tiffinfo={SAMPLE_FORMAT: 2})
    else:
        path = save(tmp_path / f"a.{suffix}", image)
    if name.startswith("unsigned"):
        tagged(path, SAMPLE_FORMAT, 1)
    found = pixels.read(path)
    expected = [round(255 * value / top) for value in values]
    np.testing.assert_array_equal(found[0, :, 0], expected)
    assert (found[0, -1, 0], found.shape) == (255, (1, 5, 1))


def test_white_is_zero(tmp_path):
    image = Image.fromarray(np.array([[0, 65535, 257]], np.uint16))
    path = tagged(save(tmp_path / "a.tiff", image), PHOTOMETRIC, 0)
    assert pixels.read(path)[0, :, 0].tolist() == [255, 0, 254]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """A JPEG that says how it is to be turned is the picture that was turned before."""
    turned = colours(32, 16)
    back = {  # what undoes each of the eight orientations of the EXIF standard
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    stored = Image.fromarray(np.ascontiguousarray(back(turned)))
    exif = Image.Exif()
    exif[274] = orientation
    for name, options in (("a.png", {}), ("a.jpg", dict(quality=95, subsampling=0))):
        plain = pixels.read(save(tmp_path / f"plain_{name}", turned, **options))
        found = pixels.read(save(tmp_path / name, stored, exif=exif, **options))
        assert found.shape == (16, 32, 3)
        tolerance = 0 if name.endswith("png") else 3  # JPEG rounds a turned block differently
        assert np.abs(found.astype(int) - plain).max() <= tolerance


def test_channels_on_request(tmp_path):
    """R, G, B -> 0.299, 0.587, 0.114 of 255, and grey -> R = G = B."""
    primaries = 255 * np.eye(3, dtype=np.uint8)[None]
    path = save(tmp_path / "a.png", primaries)
    np.testing.assert_array_equal(pixels.read(path, channels=1)[0, :, 0], [76, 150, 29])
    path = save(tmp_path / "b.png", primaries[..., 0])
    np.testing.assert_array_equal(pixels.read(path, channels=3), np.repeat(primaries[..., :1], 3, axis=-1))


def test_resizing_averages(tmp_path):
    """A fine chessboard becomes an even grey, not a pattern; the aspect ratio is not kept."""
    board = 255 * (np.indices((32, 64)).sum(axis=0) % 2).astype(np.uint8)
    found = pixels.read(save(tmp_path / "a.png", board), size=8)
    assert found.shape == (8, 8, 1)
    assert np.abs(found.astype(int) - 127.5).max() <= 1.5
    flat = pixels.read(save(tmp_path / "b.png", np.full((5, 9), 77, np.uint8)), size=16)
    assert (flat == 77).all()


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (1, 50), (3, 50)])
def test_pictures_in_memory_are_fitted_as_files_are(tmp_path, channels, size):
    """But for the rounding to 8 bits, of the greys and of the sizes."""
    for number, image in enumerate((colours(), colours()[..., 0])):
        wanted = pixels.read(save(tmp_path / f"{number}.png", image), size, channels) / 255
        planes = (image if image.ndim == 3 else image[..., None])[None] / np.float32(255)
        found = pixels.fit(np.repeat(planes, 2, 0), size, channels)
        assert found.shape == (2, size, size, channels)
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_allclose(found[0], wanted, atol=1.5 / 255)


# files that cannot be read


FORMATS = {
    "png": ("RGB", {}),
    "jpg": ("RGB", {}),
    "progressive.jpg": ("L", {"progressive": True}),
    "bmp": ("RGB", {}),
    "gif": ("P", {}),
    "tiff": ("RGB", {}),
    "lzw.tiff": ("L", {"compression": "tiff_lzw"}),
    "webp": ("RGB", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_never_half_a_picture(tmp_path, name):
    """Cut anywhere: an error that names the file, or, where only trailing bytes are gone, every pixel."""
    mode, options = FORMATS[name]
    path = save(tmp_path / f"whole.{name}", Image.fromarray(colours()).convert(mode), **options)
    whole, raw = pixels.read(path), path.read_bytes()
    cut, told = tmp_path / f"cut.{name}", []
    for length in np.linspace(0, len(raw) - 1, 60).astype(int):
        cut.write_bytes(raw[:length])
        try:
            found = pixels.read(cut)
        except UserError as error:
            told.append(str(error))
        else:
            np.testing.assert_array_equal(found, whole)
    assert len(told) > 45
    assert all(line.startswith(str(cut)) and "\n" not in line for line in told)


def bad_file(folder, name):
    path = folder / "a.png"
    if name == "text":
        path.write_text("file,label\na.png,cat\n")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "folder":
        path.mkdir()
    elif name == "truncated":
        buffer = io.BytesIO()
        Image.fromarray(colours()).save(buffer, "jpeg")
        path.write_bytes(buffer.getvalue()[:400])
    elif name == "bomb":
        save(path, Image.new("1", (20_000, 20_000)))
    elif name == "large":
        save(path, Image.new("1", (10_000, 10_000)))
    elif name == "frames":
        save(path, Image.new("L", (4, 4)), save_all=True, append_images=[Image.new("L", (4, 4), 9)])
    elif name == "floats":
        save(path, np.full((4, 4), 0.5, np.float32), format="tiff")
    elif name == "negative":
        save(path, np.full((4, 4), -1, np.int32), format="tiff")
    return path


BAD = {
    "text": "is no PNG, JPEG, BMP, GIF, TIFF, WEBP image, or its beginning is damaged: replace or remove it",
    "empty": "is no PNG",
    "folder": r"cannot be read \(Is a directory\)",
    "missing": r"cannot be read \(No such file",
    "truncated": r"is truncated or damaged \(.*\): fetch it again",
    "bomb": "has too many pixels to be safe",
    "large": "has too many pixels to be safe",
    "frames": "has 2 frames",
    "floats": "has pixels of type F",
    "negative": "has negative pixels",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_in_one_line(tmp_path, name):
    path = bad_file(tmp_path, name)
    with pytest.raises(UserError, match=f"^{path} {BAD[name]}") as error:
        pixels.read(path)
    assert "\n" not in str(error.value)
    assert "--skip-bad" not in str(error.value)
    with pytest.raises(UserError, match=f"{HINT}$"):
        pixels.read_all([path])


def test_a_picture_below_the_limit_is_no_bomb(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", colours(10, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert pixels.read(path).shape == (10, 10, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    for action in ("error", "ignore"):  # Pillow itself warns, up to twice the limit
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            with pytest.raises(UserError, match="too many pixels"):
                pixels.read(path)


@pytest.mark.parametrize(("wish", "message"), [(dict(size=0), "at least 1"), (dict(channels=4), "not 4")])
def test_senseless_wishes(tmp_path, wish, message):
    path = save(tmp_path / "a.png", colours())
    with pytest.raises(UserError, match=message):
        pixels.read(path, **wish)
    with pytest.raises(UserError, match=message):  # no bad file, which could be skipped
        pixels.read_all([path], **wish, skip_bad=True)


# many files


def test_read_all_keeps_the_order(tmp_path):
    paths = [save(tmp_path / f"{i}.png", np.full((3, 4), i, np.uint8)) for i in range(40)]
    found, kept, left_out = pixels.read_all(paths)
    np.testing.assert_array_equal(found, np.arange(40)[:, None, None, None] * np.ones((3, 4, 1)))
    np.testing.assert_array_equal(kept, np.arange(40))
    assert (found.dtype, left_out) == (np.uint8, [])


def test_read_all_takes_the_widest_mode(tmp_path):
    grey = save(tmp_path / "grey.png", colours()[..., 0])
    colour = save(tmp_path / "colour.png", colours())
    found, _, _ = pixels.read_all([grey, colour])
    np.testing.assert_array_equal(found[0], np.repeat(colours()[..., :1], 3, axis=-1))
    np.testing.assert_array_equal(found[1], colours())
    assert pixels.read_all([grey, grey])[0].shape[-1] == 1
    assert pixels.read_all([grey, colour], channels=1)[0].shape[-1] == 1


def test_differing_sizes_name_two_files(tmp_path):
    paths = [save(tmp_path / f"{i}.png", colours(*size)) for i, size in enumerate([(8, 6), (8, 6), (9, 6)])]
    told = f"{paths[0]} is 8 x 6 pixels, {paths[2]} 9 x 6; pass --image-size"
    with pytest.raises(UserError, match=told):
        pixels.read_all(paths, skip_bad=True)
    assert pixels.read_all(paths, size=5)[0].shape == (3, 5, 5, 3)


def test_bad_files_are_left_out_on_request(tmp_path):
    good = save(tmp_path / "good.png", colours())
    text = bad_file(tmp_path, "text")
    found, kept, left_out = pixels.read_all([text, good, tmp_path / "none.png", good], skip_bad=True)
    assert (len(found), kept.tolist()) == (2, [1, 3])
    assert [told.split()[0] for told in left_out] == [str(text), str(tmp_path / "none.png")]
    assert not any("--skip-bad" in told for told in left_out)
    with pytest.raises(UserError, match=f"^{text} is no PNG.*{HINT}"):  # the first in order
        pixels.read_all([good, text, tmp_path / "none.png"])
    with pytest.raises(UserError, match=f"none of 2 images can be read; the first: {text} is no"):
        pixels.read_all([text, text], skip_bad=True)
    with pytest.raises(UserError, match="no image files"):
        pixels.read_all([])
