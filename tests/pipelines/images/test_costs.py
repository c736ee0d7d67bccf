"""What an image can cost at most, in pixels of all its scans and in bytes, and not in time."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks import hostile_images
from pipelines import images

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((640, 480))
APP13 = b"\xff\xed"  # of Photoshop
MANY_SCANS = 60 * b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"

inspect = tf.function(images.inspect, input_signature=[tf.TensorSpec((), tf.string)])
decode = tf.function(images.decode, input_signature=[tf.TensorSpec((), tf.string)])


def reason_of(encoded: bytes) -> str:
    return inspect(encoded).numpy().decode()


def written(form: str, **options) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, form, **options)
    return file.getvalue()


def segment(marker: bytes, content: bytes) -> bytes:
    return marker + struct.pack(">H", len(content) + 2) + content


def after_frame(encoded: bytes, inserted: bytes) -> bytes:
    """The JPEG with bytes between its frame header and what follows it."""
    frame = max(encoded.find(b"\xff\xc0"), encoded.find(b"\xff\xc2"))
    end = frame + 2 + int.from_bytes(encoded[frame + 2 : frame + 4], "big")
    return encoded[:end] + inserted + encoded[end:]


@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize(
    ("width", "height", "scans"),
    [(10_000, 10_000, 10), (5_000, 8_000, 25), (65_500, 1_500, 10), (4_000, 3_000, 83)],
)
def test_scans_of_a_jpeg_go_over_so_many_pixels(width, height, scans, progressive):
    assert width * height * scans <= 1e9 < width * height * (scans + 1)
    for empty in (False, True):
        for excess, expected in ((0, ""), (1, f"holds more than {scans} scans"), (500, "scans")):
            encoded = hostile_images.jpeg(
                width, height, scans + excess, progressive=progressive, empty=empty
            )
            reason = reason_of(encoded)
            assert expected in reason and bool(reason) == bool(excess)
            if reason:
                assert f"{width} x {height}" in reason and "save it again as" in reason


@pytest.mark.parametrize(
    "change",
    {
        "fill bytes": lambda jpeg: jpeg.replace(b"\xff\xda", b"\xff\xff\xff\xda"),
        "restart intervals": lambda jpeg: after_frame(jpeg, segment(b"\xff\xdd", b"\0\1")),
        "scans within segments": lambda jpeg: after_frame(jpeg, segment(APP13, MANY_SCANS)),
        "a thumbnail": lambda jpeg: jpeg[:2] + segment(b"\xff\xe1", MANY_SCANS) + jpeg[2:],
        "an end within a segment": lambda jpeg: after_frame(
            jpeg, segment(b"\xff\xfe", b"\xff\xd9") + segment(APP13, MANY_SCANS)
        ),
        "another picture after the end": lambda jpeg: jpeg + jpeg,
    }.items(),
    ids=lambda item: item[0],
)
def test_scans_are_counted_as_decoders_find_them(change):
    _, changed = change
    for scans, accepted in ((10, True), (11, False)):
        encoded = changed(hostile_images.jpeg(10_000, 10_000, scans))
        assert (reason_of(encoded) == "") == accepted
    # Small images may have as many as encoders could want.
    assert reason_of(changed(hostile_images.jpeg(800, 600, 900))) == ""
    # More segments than are walked through are refused too.
    endless = after_frame(hostile_images.jpeg(10_000, 10_000, 11), segment(APP13, b"") * 5_000)
    assert "scans" in reason_of(endless)


def thumbnailed() -> Image.Exif:
    """EXIF with the preview of a camera, a JPEG of its own."""
    exif = Image.Exif()
    exif[0x0112] = 1
    small = io.BytesIO()
    PICTURE.resize((160, 120)).save(small, "JPEG")
    exif.get_ifd(0x8769)[0x927C] = small.getvalue()
    return exif


# As cameras and programs write them.
ORDINARY = {
    "progressive": lambda: written("JPEG", progressive=True, quality=95, subsampling=0),
    "progressive, restarts": lambda: written("JPEG", progressive=True, restart_marker_blocks=3),
    "thumbnail": lambda: written("JPEG", exif=thumbnailed()),
    "progressive, thumbnail": lambda: written("JPEG", progressive=True, exif=thumbnailed()),
    "profile": lambda: written("JPEG", progressive=True, icc_profile=RNG.bytes(300_000)),
    "several pictures": lambda: written(
        "MPO", save_all=True, append_images=[PICTURE.resize((320, 240))] * 2
    ),
    "Photoshop": lambda: after_frame(
        written("JPEG", progressive=True), segment(APP13, b"Photoshop 3.0\0" + MANY_SCANS)
    ),
    "PNG of a screen": lambda: hostile_images.png(640, 480, color_type=6, interlaced=True),
    "PNG of 16 bits": lambda: hostile_images.png(640, 480, color_type=6, depth=16),
    "PNG with metadata": lambda: hostile_images.png(
        640,
        480,
        before=hostile_images.compressed_text(b"zTXt", 9_000) * 4
        + hostile_images.compressed_text(b"iTXt", 60_000) * 4
        + hostile_images.png_chunk(b"tEXt", b"Software\0any") * 40,
    ),
    "PNG with profile": lambda: written("PNG", icc_profile=RNG.bytes(3_000), exif=thumbnailed()),
    "GIF": lambda: written("GIF", save_all=True, append_images=[PICTURE] * 30),
    "WebP": lambda: written("WEBP", icc_profile=RNG.bytes(3_000), exif=thumbnailed()),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_pictures_are_read(name):
    encoded = ORDINARY[name]()
    assert reason_of(encoded) == ""
    assert decode(encoded).shape == (480, 640, 3)


def test_photographs_are_within_the_limits(shared_data):
    paths = sorted((shared_data / "voc_subset" / "images").iterdir())[::7]
    assert {reason_of(path.read_bytes()) for path in paths} == {""}


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_compressed_texts_of_a_png_are_counted_wherever_they_stand(kind, place):
    text = hostile_images.compressed_text(kind, 7_900_000)
    assert len(text) < 8_000  # which libpng unpacks to a thousand times as much
    assert reason_of(hostile_images.png(8, 8, **{place: text * 16})) == ""
    for count in (17, 600):
        reason = reason_of(hostile_images.png(8, 8, **{place: text * count}))
        assert "more than 16 compressed texts" in reason and "without them" in reason


def declared_png(width: int, height: int, color_type: int, depth: int) -> bytes:
    encoded = hostile_images.png(8, 8, color_type=color_type, depth=depth)
    return encoded[:16] + struct.pack(">II", width, height) + encoded[24:]


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("size", [(10_000, 10_000), (10_000, 6_000), (50_000, 1_000)])
def test_a_png_unpacks_to_so_many_bytes(size, color_type, depth):
    num_bytes = size[0] * size[1] * {0: 1, 2: 3, 4: 2, 6: 4}[color_type] * depth // 8
    reason = reason_of(declared_png(*size, color_type, depth))
    assert bool(reason) == (num_bytes > 4e8)
    if reason:
        assert f"unpacks to {num_bytes} bytes" in reason and "8 bits a channel" in reason


def test_a_gif_is_made_of_its_frame_and_its_canvas():
    # The decoder sees one frame, however many follow it.
    alone, animated = (hostile_images.gif(90, 70, canvas=(200, 160), frames=n) for n in (1, 500))
    expected = np.asarray(Image.open(io.BytesIO(alone)).convert("RGB"))
    for encoded in (alone, animated, hostile_images.gif(90, 70, canvas=(200, 160), block=1)):
        np.testing.assert_array_equal(decode(encoded), expected)
    for frame, canvas in (((10_001, 10_000), None), ((8, 8), (10_001, 10_000))):
        encoded = hostile_images.gif(8, 8, canvas=canvas)
        place = encoded.index(b",\0\0\0\0") + 5
        encoded = encoded[:place] + struct.pack("<HH", *frame) + encoded[place + 4 :]
        assert "at most 100000000 in all" in reason_of(encoded)
