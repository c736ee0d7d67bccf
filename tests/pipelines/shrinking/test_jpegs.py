"""Tests of small JPEGs of images of any format, and of the processes that make them."""

import io
import itertools
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from hostile_images import declaring, generated_images, strings
from PIL import Image, ImageCms, ImageOps, features

from benchmarks import hostile_images as costly_files
from pipelines import images
from pipelines.shrinking import ImageError, Settings, jpegs, processes

# Columns: red, green and blue in CIE XYZ under D50, as the profiles of the two spaces give them.
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
ADOBE_RGB = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
GAMMA = 563 / 256


def photograph(width: int = 320, height: int = 240) -> Image.Image:
    """Soft blobs of color, which JPEG keeps well."""
    coarse = np.random.default_rng(0).integers(80, 176, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def written(image: Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def opened(encoded: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(encoded))
    image.load()
    return image


def shrink(encoded: bytes, max_side: int = 64, quality: int = 95) -> Image.Image:
    return opened(jpegs.shrink(encoded, max_side=max_side, quality=quality).encoded)


def difference(image: Image.Image, expected: Image.Image) -> float:
    """The mean absolute difference of two images of one size, of 255."""
    assert image.size == expected.size
    pair = (np.asarray(each.convert("RGB"), np.float64) for each in (image, expected))
    return float(np.abs(next(pair) - next(pair)).mean())


def profile(space: bytes, **tags: bytes) -> bytes:
    """An ICC profile of version 2 with the tags of a matrix or of a curve, by the specification."""
    tags = {"wtpt": xyz(0.9642, 1.0, 0.8249)} | tags
    body, table, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name.encode() + struct.pack(">II", start + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28
    header += struct.pack(">iii", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(v * 65536) for v in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def matrix_profile(primaries: np.ndarray, gamma: float) -> bytes:
    columns = {f"{c}XYZ": xyz(*primaries[:, i]) for i, c in enumerate("rgb")}
    return profile(b"RGB ", **columns, **{f"{c}TRC": curve(gamma) for c in "rgb"})


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """The companding of IEC 61966-2-1, float64 in [0, 1] → uint8."""
    linear = np.clip(linear, 0, 1)
    low, high = 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    return np.round(255 * np.where(linear <= 0.0031308, low, high)).astype(np.uint8)


FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000"]
FORMATS += ["AVIF"] if features.check("avif") else []


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_becomes_a_jpeg_of_the_size_wanted(image_format):
    encoded = written(photograph(320, 200), image_format)
    shrunk = jpegs.shrink(encoded, max_side=64, quality=95)
    image = opened(shrunk.encoded)
    assert image.format == "JPEG" and image.size == (64, 40) and not shrunk.is_copy
    expected = opened(encoded).convert("RGB").resize((64, 40), Image.Resampling.LANCZOS)
    assert difference(image, expected) < 3


def test_heic_is_read_with_the_extra_and_named_without_it():
    heic = b"\0\0\0\x18ftypheic" + b"\0" * 40
    if "HEIF" in Image.OPEN:
        pytest.skip("pillow-heif is installed")
    with pytest.raises(ImageError, match=r"is HEIC, .*pip install 'dbl-tf\[heif\]'"):
        shrink(heic)


def test_heic_is_read():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    image = photograph()
    encoded = written(image, "HEIF", quality=95)
    assert difference(shrink(encoded), image.resize((64, 48), Image.Resampling.LANCZOS)) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_applied_and_not_kept(orientation, image_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = written(photograph(320, 200), image_format, exif=exif)
    image = shrink(encoded)
    upright = ImageOps.exif_transpose(opened(encoded)).convert("RGB")
    assert not image.getexif()
    assert difference(image, upright.resize(image.size, Image.Resampling.LANCZOS)) < 3


def test_a_small_photograph_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = written(photograph(60, 40), "JPEG", exif=exif)
    assert shrink(encoded).size == (40, 60)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (64, 64)),
        ((65, 64), (64, 63)),
        ((30, 20), (30, 20)),
        ((2000, 3), (64, 1)),
        ((3, 2000), (1, 64)),
        ((1, 1), (1, 1)),
    ],
)
def test_the_longer_side_is_limited_and_nothing_is_enlarged(size, expected):
    assert shrink(written(photograph(*size), "PNG")).size == expected


def test_a_jpeg_that_is_right_stays_byte_for_byte():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    color, gray = photograph(64, 48), photograph(64, 48).convert("L")
    comment = {"comment": b"kept", "progressive": True}
    for image, options in (
        (color, {}),
        (gray, {}),
        (color, {"icc_profile": srgb}),
        (color, comment),
    ):
        encoded = written(image, "JPEG", **options)
        shrunk = jpegs.shrink(encoded, max_side=64, quality=50)
        assert shrunk.is_copy and shrunk.encoded == encoded
    for image, options in (
        (photograph(65, 48), {}),
        (color.convert("CMYK"), {}),
        (color, {"icc_profile": matrix_profile(ADOBE_RGB, GAMMA)}),
    ):
        assert not jpegs.shrink(written(image, "JPEG", **options), max_side=64, quality=50).is_copy


def test_a_jpeg_that_is_right_but_cut_off_is_no_copy():
    encoded = written(photograph(64, 48), "JPEG")
    with pytest.raises(ImageError, match=r"cannot be decoded: .*[Tt]runcated"):
        shrink(encoded[: len(encoded) // 2])


def test_colors_of_a_wide_space_become_those_of_srgb():
    """Against the closed form: decode, change the primaries, encode."""
    levels = (40, 100, 160, 220)
    colors = np.array([*itertools.product(levels, repeat=3)])
    image = Image.fromarray(colors.reshape(8, 8, 3).astype(np.uint8))
    encoded = written(image, "PNG", icc_profile=matrix_profile(ADOBE_RGB, GAMMA))
    linear = (colors / 255.0) ** GAMMA
    expected = to_srgb(linear @ np.linalg.solve(SRGB, ADOBE_RGB).T)
    converted = jpegs._srgb(opened(encoded), jpegs._profile(opened(encoded))[0])
    np.testing.assert_allclose(
        np.asarray(converted, int).reshape(-1, 3), expected.astype(int), atol=2
    )
    # In flat patches, nothing of it is lost in the JPEG.
    patch = Image.new("RGB", (64, 64), (220, 60, 60))
    encoded = written(patch, "TIFF", icc_profile=matrix_profile(ADOBE_RGB, GAMMA))
    linear = (np.array([220, 60, 60]) / 255.0) ** GAMMA
    expected = to_srgb(np.linalg.solve(SRGB, ADOBE_RGB @ linear))
    assert np.abs(np.asarray(shrink(encoded), int) - expected).max() <= 4
    assert expected[0] > 240  # it is not that of the file


def test_a_gray_profile_is_applied():
    linear = profile(b"GRAY", kTRC=curve(1.0))
    encoded = written(Image.new("L", (16, 16), 55), "PNG", icc_profile=linear)
    assert np.abs(np.asarray(shrink(encoded), int) - int(to_srgb(np.array(55 / 255)))).max() <= 2


@pytest.mark.parametrize(
    ("icc_profile", "reason"),
    [(b"no profile", "cannot be read"), (profile(b"GRAY", kTRC=curve(1.0)), "is for GRAY")],
)
def test_a_profile_that_does_not_fit_is_told_and_not_used(icc_profile, reason):
    image = photograph(32, 32)
    shrunk = jpegs.shrink(written(image, "PNG", icc_profile=icc_profile), max_side=64, quality=95)
    assert shrunk.ignored_profile.startswith(reason)
    assert difference(opened(shrunk.encoded), image) < 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "RGBA"])
def test_modes_are_read_as_training_reads_them(mode):
    """A flat patch in every mode, against the decoder of the training pipeline."""
    image = Image.new("RGB", (16, 16), (200, 120, 40))
    image = image.quantize(4) if mode == "P" else image.convert(mode, dither=Image.Dither.NONE)
    if mode in ("LA", "RGBA"):
        image.putalpha(10)
    encoded = written(image, "JPEG" if mode == "CMYK" else "PNG")
    expected = images.decode(encoded).numpy().astype(int)
    found = np.asarray(shrink(encoded).convert("RGB"), int)
    assert np.abs(found - expected).max() <= 3


def test_a_transparent_palette_color_keeps_its_color():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 210, 30, 90])
    encoded = written(image, "PNG", transparency=1)
    found = np.asarray(shrink(encoded), int)
    assert np.abs(found - images.decode(encoded).numpy()).max() <= 3


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_gray_of_16_bits_keeps_the_high_byte(image_format):
    gray = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    found = np.asarray(shrink(written(Image.fromarray(gray), image_format)), int)
    assert found.shape == (48, 64)
    assert np.abs(found - (gray >> 8)).max() <= 3


def test_lab_is_converted():
    """L* = 50 without chroma is the gray of Y = 0.18419, by CIE 15."""
    encoded = written(Image.new("LAB", (16, 16), (round(0.5 * 255), 128, 128)), "TIFF")
    assert np.abs(np.asarray(shrink(encoded), int) - int(to_srgb(np.array(0.18419)))).max() <= 3


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((8, 8), 0.5, np.float32), "floating-point pixels"),
        (np.full((8, 8), 70_000, np.int32), "gray values from 70000 to 70000"),
        (np.full((8, 8), -1, np.int32), "gray values from -1 to -1"),
    ],
)
def test_pixels_of_unknown_range_are_refused(pixels, reason):
    with pytest.raises(ImageError, match=reason):
        shrink(written(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_of_several_frames_is_taken(image_format):
    first = Image.new("RGB", (32, 32), (200, 30, 30))
    others = [Image.new("RGB", (32, 32), color) for color in ((30, 200, 30), (30, 30, 200))]
    encoded = written(first, image_format, save_all=True, append_images=others)
    shrunk = jpegs.shrink(encoded, max_side=16, quality=95)
    assert shrunk.num_frames == 3
    assert difference(opened(shrunk.encoded), first.resize((16, 16))) < 6


def test_a_large_jpeg_is_scaled_while_it_is_decoded(monkeypatch):
    encoded = written(photograph(1024, 768), "JPEG", quality=95)
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *args: sizes.append(self.size) or resize(self, *args)
    )
    image = shrink(encoded)
    assert sizes == [(128, 96)]  # twice the result, and no more
    assert difference(image, photograph(1024, 768).resize((64, 48), Image.Resampling.LANCZOS)) < 3


def test_nothing_but_pixels_is_kept():
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    encoded = written(photograph(), "JPEG", exif=exif, comment=b"a secret place", dpi=(300, 300))
    shrunk = jpegs.shrink(encoded, max_side=64, quality=95).encoded
    assert b"secret" in encoded and b"secret" not in shrunk
    assert "dpi" not in opened(shrunk).info


def test_images_that_would_fill_the_memory_are_refused():
    limit = 2 * Image.MAX_IMAGE_PIXELS
    for encoded in declaring(65_000, 65_000):
        with pytest.raises(ImageError, match=f"more than {limit} pixels|is no image"):
            shrink(encoded)
    with pytest.raises(ImageError, match=f"more than {limit} pixels"):
        shrink(declaring(65_000, 65_000)[0])


@pytest.mark.parametrize("encoded", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"", b"GIF89a"])
def test_other_files_are_refused(encoded):
    with pytest.raises(ImageError, match=r"is no image that Pillow reads here|is empty"):
        shrink(encoded)


def test_hostile_bytes_give_an_image_or_a_reason():
    usual = generated_images()
    usual += [written(photograph(64, 48), name) for name in FORMATS if name not in ("JPEG", "PNG")]
    requests = enumerate(strings(400, usual))
    results = list(
        processes.shrink_all(requests, settings=Settings(max_side=32, quality=90), num_processes=2)
    )
    assert [i for i, _ in results] == list(range(400))
    made = [result for _, result in results if not isinstance(result, ImageError)]
    reasons = {str(result) for _, result in results if isinstance(result, ImageError)}
    assert all(max(opened(each.encoded).size) <= 32 for each in made)
    assert made and reasons
    assert not [reason for reason in reasons if reason.startswith("ended the process")]


def test_processes_give_what_the_function_gives_in_order(tmp_path):
    encoded = [written(photograph(100 + i, 80), "JPEG") for i in range(20)]
    (tmp_path / "a.jpg").write_bytes(encoded[0])
    requests = [*enumerate(encoded), (20, str(tmp_path / "a.jpg")), (21, str(tmp_path / "none"))]
    results = dict(
        processes.shrink_all(requests, settings=Settings(max_side=50, quality=92), num_processes=2)
    )
    assert list(results) == list(range(22))
    for i, each in enumerate(encoded):
        assert results[i] == jpegs.shrink(each, max_side=50, quality=92)
    assert results[20] == results[0]
    assert str(results[21]) == os.strerror(2)


def test_an_image_that_kills_its_process_is_bad_and_the_next_ones_are_read():
    process = processes._Process()
    encoded = written(photograph(), "JPEG")
    try:
        expected = process.shrink(encoded, 50, 92)
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait()
        failed = process.shrink(encoded, 50, 92)
        assert isinstance(failed, ImageError) and "status -9" in str(failed)
        assert process.shrink(encoded, 50, 92) == expected
    finally:
        process.end()


def test_the_processes_do_not_import_tensorflow():
    finished = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", jpegs.__file__],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "PIL.Image" in imported
    assert not {name for name in imported if name.split(".")[0] in ("tensorflow", "keras", "numpy")}


def test_scans_of_a_jpeg_are_bounded_by_its_pixels():
    limit = 2_000_000_000 // 10_000**2
    costly = costly_files.jpeg(10_000, 10_000, limit + 1)
    with pytest.raises(ImageError, match=f"holds {limit + 1} scans of 10000 x 10000.* save it"):
        jpegs.shrink(costly, max_side=64, quality=90)
    # As many in a segment of metadata, and in a picture after the end, are none of this one.
    small = written(photograph(), "JPEG", progressive=True)
    metadata = b"\xff\xed\xfd\xe9" + b"\xff\xda\0\x08\x01" * 13_000 + bytes(0)
    metadata = metadata[: 2 + 0xFDE9].ljust(2 + 0xFDE9, b"\0")
    decorated = small[:2] + metadata + small[2:] + costly
    assert jpegs.shrink(decorated, max_side=320, quality=90).is_copy


def test_a_file_of_any_size_is_refused_before_it_fills_the_memory(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(20 * 10**9)  # sparse
    requests = [("huge", str(tmp_path / "huge.jpg"))]
    ((_, answer),) = processes.shrink_all(requests, settings=Settings(), num_processes=1)
    assert isinstance(answer, ImageError) and "bytes, the most that are read" in str(answer)
