"""Every kind of image file in, and every format out."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from momentnorm.stylize import Photo, StylizeError, read_photo, write_photo
from momentnorm.stylize.images import SKIMAGE_PHOTOS, WRITABLE, photo_path, whole_file
from support.stylize_samples import pixels

RGB = pixels(21, 34)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).float() / 255


def saved(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_rgb(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(RGB))
    photo = read_photo(path)
    assert photo.alpha is None
    assert torch.equal(photo.rgb, as_tensor(RGB))


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_rgb(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(RGB), quality=95)
    assert (read_photo(path).rgb - as_tensor(RGB)).abs().mean() < 0.03


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = RGB[..., 0]
    photo = read_photo(saved(tmp_path / "a.png", Image.fromarray(grey)))
    assert torch.equal(photo.rgb, as_tensor(np.stack([grey] * 3, -1)))


def test_one_bit(tmp_path):
    black_and_white = Image.fromarray(RGB).convert("1")
    photo = read_photo(saved(tmp_path / "a.png", black_and_white))
    assert set(photo.rgb.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey(tmp_path, suffix):
    values = np.linspace(0, 65535, 21 * 34).astype(np.uint16).reshape(21, 34)
    photo = read_photo(saved(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    expected = torch.from_numpy(values / 65535.0)
    assert (photo.rgb[0] - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_floats_have_no_range(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(RGB[..., 0].astype(np.float32)))
    with pytest.raises(StylizeError, match=r"a\.tif: .* convert it to 8 or 16 bits"):
        read_photo(path)


def test_palette(tmp_path):
    path = saved(tmp_path / "a.gif", Image.fromarray(RGB).quantize(200))
    assert (read_photo(path).rgb - as_tensor(RGB)).abs().mean() < 0.05


def test_alpha(tmp_path):
    rgba = np.concatenate([RGB, pixels(21, 34, 1, seed=3)], -1)
    photo = read_photo(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    assert torch.equal(photo.rgb, as_tensor(RGB))
    assert torch.equal(photo.alpha, as_tensor(rgba[..., 3:]))


def test_grey_with_alpha(tmp_path):
    photo = read_photo(saved(tmp_path / "a.png", Image.fromarray(RGB[..., :2].copy(), "LA")))
    assert torch.equal(photo.alpha, as_tensor(RGB[..., 1:2]))


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_one_transparent_colour(tmp_path, mode):
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    image.paste((200, 0, 0), (0, 0, 4, 6))
    if mode == "P":
        image = image.quantize(2)
        transparent = image.getpixel((7, 0))
    else:
        transparent = (10, 20, 30)
    photo = read_photo(saved(tmp_path / "a.png", image, transparency=transparent))
    assert photo.alpha[0, 0].tolist() == [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_dropped(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "somebody"
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB[::-1].transpose(1, 0, 2),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: RGB[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    photo = read_photo(path)
    assert torch.equal(photo.rgb, as_tensor(upright))
    write_photo(photo, tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as again:
        kept = again.getexif()
        assert again.size == (upright.shape[1], upright.shape[0])
    assert ExifTags.Base.Orientation not in kept
    assert kept[ExifTags.Base.Artist] == "somebody"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_that_stays_and_goes(tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    exif[ExifTags.Base.ImageWidth] = 4000
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: "2026:01:02 03:04:05",
        ExifTags.Base.MakerNote: b"the old picture",
        ExifTags.Base.ExifImageWidth: 4000,
    }
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    path = saved(tmp_path / "a.jpg", Image.fromarray(RGB), exif=exif)
    write_photo(read_photo(path), tmp_path / f"b.{suffix}")
    with Image.open(tmp_path / f"b.{suffix}") as again:
        kept = again.getexif()
        assert kept[ExifTags.Base.Make] == "camera"
        assert kept.get(ExifTags.Base.ImageWidth) != 4000
        inner = kept.get_ifd(ExifTags.IFD.Exif)
        assert inner[ExifTags.Base.DateTimeOriginal] == "2026:01:02 03:04:05"
        assert ExifTags.Base.MakerNote not in inner
        assert ExifTags.Base.ExifImageWidth not in inner
        assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_damaged_exif_does_not_matter(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert torch.equal(read_photo(path).rgb, as_tensor(RGB))


def test_colour_profile_stays_where_it_fits(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = read_photo(saved(tmp_path / "a.jpg", Image.fromarray(RGB), icc_profile=profile))
    assert photo.icc_profile == profile
    for suffix in ("jpg", "png", "webp", "tif"):
        write_photo(photo, tmp_path / f"b.{suffix}")
        with Image.open(tmp_path / f"b.{suffix}") as again:
            assert again.info["icc_profile"] == profile
    grey = profile[:16] + b"GRAY" + profile[20:]
    path = saved(tmp_path / "c.png", Image.fromarray(RGB[..., 0]), icc_profile=grey)
    assert read_photo(path).icc_profile is None


@pytest.mark.parametrize("profile", [None, b"\0" * 16 + b"CMYK" + b"\0" * 108])
def test_cmyk(tmp_path, profile):
    cmyk = Image.fromarray(RGB).convert("CMYK")
    path = saved(tmp_path / "a.jpg", cmyk, quality=97, icc_profile=profile)
    photo = read_photo(path)
    assert photo.icc_profile is None
    assert (photo.rgb - as_tensor(RGB)).abs().mean() < 0.03


def test_scaled_on_reading(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    assert read_photo(path, 17).rgb.shape == (3, 10, 17)
    assert read_photo(path, 68).rgb.shape == (3, 42, 68)
    narrow = saved(tmp_path / "b.png", Image.new("RGB", (500, 1)))
    assert read_photo(narrow, 50).rgb.shape == (3, 1, 50)


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("with_alpha", [False, True])
def test_written_formats(tmp_path, suffix, with_alpha):
    alpha = torch.zeros(1, 21, 34) if with_alpha else None
    if alpha is not None:
        alpha[:, :, :17] = 1
    path = tmp_path / f"out{suffix.upper()}"
    write_photo(Photo(as_tensor(RGB), alpha), path)
    with Image.open(path) as again:
        assert again.format == WRITABLE[suffix][0]
    photo = read_photo(path)
    left = (photo.rgb - as_tensor(RGB))[:, :, :16]  # a codec block away from the edge
    assert left.abs().mean() < (0.02 if suffix in (".jpg", ".jpeg", ".webp") else 1e-6)
    if with_alpha and WRITABLE[suffix][1]:
        assert torch.equal(photo.alpha, alpha)
    elif with_alpha:
        assert photo.alpha is None
        assert (photo.rgb[:, :, 24:] > 0.97).all(), "transparent is white"


@pytest.mark.parametrize("name", ["out.xyz", "out", "out.pdf", "out.gif"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(StylizeError, match=r"use one of \.jpg"):
        write_photo(Photo(as_tensor(RGB)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_not_an_image(tmp_path):
    text = tmp_path / "a.jpg"
    text.write_text("hello")
    with pytest.raises(StylizeError, match="not an image"):
        read_photo(text)
    with pytest.raises(StylizeError, match="no such file"):
        read_photo(tmp_path / "b.jpg")
    with pytest.raises(StylizeError, match="folder"):
        read_photo(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif"])
def test_truncated(tmp_path, suffix):
    buffer = io.BytesIO()
    form = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    Image.fromarray(pixels(90, 90)).save(buffer, form)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(buffer.getvalue()[: buffer.tell() * 2 // 3])
    with pytest.raises(StylizeError, match=r"get the file again|not an image"):
        read_photo(path)


def test_other_formats_are_not_opened(tmp_path):
    path = tmp_path / "a.eps"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(StylizeError, match="not an image"):
        read_photo(path)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 21 * 34 // 2 - 1)
    with pytest.raises(StylizeError, match="decompression bomb"):
        read_photo(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 21 * 34 - 1)  # only a warning for Pillow
    read_photo(path)


def test_photographs_of_scikit_image():
    pytest.importorskip("skimage")
    for name in SKIMAGE_PHOTOS:
        assert photo_path(f"skimage:{name}").is_file(), name
    assert read_photo("skimage:astronaut").rgb.shape == (3, 512, 512)
    with pytest.raises(StylizeError, match="astronaut, chelsea"):
        photo_path("skimage:motorcycle")


def test_scikit_image_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StylizeError, match="pip install scikit-image"):
        photo_path("skimage:astronaut")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def broken(self, file, *arguments, **options):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(StylizeError, match="No space left"):
        write_photo(Photo(as_tensor(RGB)), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_whoever_reads_the_old_file_goes_on_reading_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        write_photo(Photo(as_tensor(RGB)), path)
        assert reader.read() == b"old", "replaced, not written over"


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with whole_file(tmp_path / "a.png") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_written_files_have_ordinary_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_photo(Photo(as_tensor(RGB)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == plain.stat().st_mode


def test_too_large_for_the_format(tmp_path):
    with pytest.raises(StylizeError, match=r"use \.png"):
        write_photo(Photo(torch.zeros(3, 1, 16384)), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())
