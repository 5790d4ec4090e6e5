"""Every kind of image becomes the RGB pixels that a viewer shows, or is named."""

import io

import numpy as np
import pytest
from PIL import Image

from cilkit.data.decoding import decode, shrunk, size_of
from cilkit.errors import UserError


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(height=24, width=40) -> np.ndarray:
    """Smooth colours, another in every corner."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.round(255 * np.stack([x, y, 1 - x], axis=2)).astype(np.uint8)


def test_rgb_bytes_arrays_and_pil_images_are_the_pixels_themselves():
    pixels = ramp()
    for data in (encoded(Image.fromarray(pixels)), pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(decode(data, "x"), pixels)
        assert size_of(data) == (24, 40)


def test_grey_of_8_and_16_bits_and_single_channels_are_three_equal_channels():
    grey = ramp()[:, :, 0]
    three = np.repeat(grey[:, :, None], 3, axis=2)
    for data in (grey, grey[:, :, None], encoded(Image.fromarray(grey)), encoded(Image.fromarray(grey).convert("LA"))):
        np.testing.assert_array_equal(decode(data, "x"), three)
    deep = grey.astype(np.uint16) * 257  # black stays 0, white becomes 65535
    for data in (deep, encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "TIFF")):
        np.testing.assert_array_equal(decode(data, "x"), three)
    bits = encoded(Image.fromarray(grey > 127))
    np.testing.assert_array_equal(decode(bits, "x"), np.where(three > 127, 255, 0))


def test_palettes_are_looked_up():
    flat = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    palette = Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE)
    assert palette.mode == "P"
    np.testing.assert_array_equal(decode(encoded(palette), "x"), flat)
    np.testing.assert_array_equal(decode(encoded(palette, "GIF"), "x"), flat)


def test_transparent_parts_are_white_and_half_transparent_ones_mixed_with_it():
    layered = np.zeros((2, 3, 4), np.uint8)
    layered[:, :, 0] = 200
    layered[:, 1, 3], layered[:, 2, 3] = 51, 255  # nothing, a fifth, all of it
    shown = decode(encoded(Image.fromarray(layered)), "x")[0]
    assert shown.tolist() == [[255, 255, 255], [244, 204, 204], [200, 0, 0]]
    np.testing.assert_array_equal(decode(layered, "x")[0], shown)
    keyed = encoded(Image.fromarray(np.array([[[9, 9, 9], [200, 0, 0]]], np.uint8)), transparency=(9, 9, 9))
    assert decode(keyed, "x").tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_cmyk_has_the_colours_of_the_picture():
    pixels = ramp()
    shown = decode(encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95, subsampling=0), "x")
    assert np.abs(shown.astype(int) - pixels).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_camera_is_turned_back(kind, orientation):
    upright = np.kron(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]), np.ones((8, 16, 1)))
    upright = upright.astype(np.uint8)  # (16, 32, 3)
    undone = {  # how the sensor saw it, by EXIF's numbers
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(undone)), kind, exif=exif, **options)
    assert size_of(data) == (16, 32)
    assert np.abs(decode(data, "x").astype(int) - upright).max() <= 3


def test_damaged_exif_does_not_make_a_sound_picture_unreadable():
    data = encoded(Image.fromarray(ramp()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\0")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        assert decode(data, "x").shape == (24, 40, 3)


def test_a_callers_pil_image_is_left_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(ramp()), "JPEG", exif=exif)))
    assert decode(image, "x").shape == (40, 24, 3)
    assert image.size == (40, 24) and image.getexif()[0x0112] == 6


def test_jpegs_are_decoded_at_the_smallest_scale_that_keeps_the_shorter_side():
    big = Image.fromarray(ramp(400, 640))
    data = encoded(big, "JPEG", quality=95)
    whole = decode(data, "x")
    for shortest, scale in ((0, 1), (401, 1), (201, 1), (200, 2), (100, 4), (50, 8), (1, 8)):
        small = decode(data, "x", shortest)
        assert small.shape == (400 // scale, 640 // scale, 3)
        mean = whole.reshape(400 // scale, scale, 640 // scale, scale, 3).mean((1, 3))
        assert np.abs(small - mean).max() <= 4  # the picture, averaged
    assert decode(encoded(big), "x", 50).shape == (400, 640, 3)  # only JPEGs can


def test_shrinking_is_pil_s_own_resizing():
    from torchvision.transforms import Resize

    pixels = np.random.default_rng(0).integers(0, 256, (333, 500, 3), dtype=np.uint8)
    for image in (pixels, pixels.transpose(1, 0, 2)):
        paper = Resize(256, interpolation=3)(Image.fromarray(np.ascontiguousarray(image)))
        np.testing.assert_array_equal(shrunk(image, short=256), np.asarray(paper))
        paper = Resize((300, 300), interpolation=3)(Image.fromarray(np.ascontiguousarray(image)))
        np.testing.assert_array_equal(shrunk(image, square=300), np.asarray(paper))
    np.testing.assert_array_equal(shrunk(pixels[:200], short=256), pixels[:200])  # never enlarged


def test_what_is_no_whole_image_is_named():
    jpeg, png = (encoded(Image.fromarray(ramp(64, 64)), kind) for kind in ("JPEG", "PNG"))
    for data, reason in ((b"", "it is empty"), (b"<html>404</html>", "cannot identify"), (jpeg[:-300], "truncated")):
        with pytest.raises(UserError, match=rf"birds/7\.jpg is not a readable image: .*{reason}.*bad_images='skip'"):
            decode(data, "birds/7.jpg")
    with pytest.raises(UserError, match="truncated"):
        decode(jpeg[:-300], "birds/7.jpg", shortest=1)  # seen at reduced scale, too
    for data in (png[:-40], png[:60] + b"\0\0\0\0" + png[64:], np.zeros((3, 3, 7), np.uint8), np.zeros((3, 3))):
        with pytest.raises(UserError, match="x is not a readable image"):
            decode(data, "x")
