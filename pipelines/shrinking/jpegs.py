"""Turns one image of any format and size into a small JPEG in sRGB.

Pillow and the standard library only: this file is also the program of the processes that
`pipelines.shrinking.processes` starts, which would wait for seconds for TensorFlow and hold its
memory.
"""

import dataclasses
import functools
import importlib.util
import io
import itertools
import os
import pickle
import re
import signal
import struct
import sys
import warnings

import PIL
from PIL import Image, ImageCms, UnidentifiedImageError

# The version of `shrink`. Raise it whenever a change here changes a byte of its results.
VERSION = 1
# Of the formats that Pillow knows, those that hold photographs. Some of the others run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "HEIF")

_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HIGH_BYTES = [value >> 8 for value in range(1 << 16)]
# A profile is sRGB if it moves no color by more than this, of 255: profiles of sRGB differ in
# rounding.
_SAME_COLOR = 2
# The largest width and height that libjpeg writes.
_LARGEST_JPEG = 65500
# A progressive JPEG may go over its pixels any number of times, at 10 bytes a time. Encoders make
# some 10 scans, which this allows at the most pixels that Pillow reads.
_MAX_SCANNED_PIXELS = 2_000_000_000
# More than such an image takes without compression.
_MAX_FILE_BYTES = 2_000_000_000
# A marker of a JPEG, which coded data do not hold, save for restarts.
_MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")
_END, _SCAN, _FIRST_WITH_LENGTH = 0xD9, 0xDA, 0xC0
# What Pillow raises for an EXIF block that is damaged.
_BAD_EXIF = (OSError, SyntaxError, ValueError, KeyError, TypeError, EOFError, struct.error)


class ImageError(ValueError):
    """An image cannot be turned into a JPEG; the message is the reason, without the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the bytes of a JPEG depend on, beside the image.

    Attributes:
        max_side: the largest width and height of the JPEG, in pixels.
        quality: its quality, from 1 to 100, as Pillow counts it.
        version: the version of `shrink`.
        pillow: the version of Pillow.

    Raises:
        ValueError: a number is out of its range.
    """

    max_side: int = 512
    quality: int = 92
    version: int = VERSION
    pillow: str = PIL.__version__

    def __post_init__(self) -> None:
        if not 1 <= self.max_side <= _LARGEST_JPEG:
            raise ValueError(
                f"max_side must be from 1 to {_LARGEST_JPEG}, the largest side of a JPEG, got "
                f"{self.max_side}"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, got {self.quality}")


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A JPEG that was made of an image.

    Attributes:
        encoded: the bytes of the JPEG.
        is_copy: whether they are those of the image itself.
        num_frames: the number of frames or pages of the image, of which this is the first.
        ignored_profile: why the ICC profile of the image was not used; empty if it was, or if the
            image has none.
    """

    encoded: bytes
    is_copy: bool
    num_frames: int
    ignored_profile: str


def shrink(encoded: bytes, *, max_side: int, quality: int) -> Shrunk:
    """Makes a JPEG whose longer side is at most `max_side`, upright and in sRGB.

    A JPEG that is all of this already stays as it is, byte for byte, if it can be decoded to its
    end. Any other image is scaled by Pillow's Lanczos filter, and encoded without metadata; a
    JPEG of more than twice the size wanted is already scaled while it is decoded. As in
    `pipelines.images.decode`, transparency is dropped rather than blended, 16-bit channels keep
    their high byte, and of an animation or of several pages, the first is taken.

    Args:
        encoded: the bytes of an image file of one of `FORMATS`.
        max_side: the largest width and height of the result, in pixels. Smaller images keep their
            size.
        quality: the quality of the JPEG, from 1 to 100, as Pillow counts it.

    Raises:
        ImageError: the image cannot be read.
    """
    try:
        return _shrink(encoded, max_side, quality)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(_unread(encoded)) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(
            f"has more than {limit} pixels, the limit of Pillow, which keeps a small file from "
            "taking all memory"
        ) from None
    except Exception as error:  # the decoders raise errors of any kind for damaged data
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def _shrink(encoded: bytes, max_side: int, quality: int) -> Shrunk:
    image: Image.Image = Image.open(io.BytesIO(encoded), formats=_formats())
    _check_scans(encoded, image.size)
    num_frames = getattr(image, "n_frames", 1)
    profile, ignored = _profile(image)
    size = _scaled(image.size, max_side)
    if (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and _orientation(image) == 1
        and (profile is None or profile.is_srgb)
        and size == image.size
    ):
        image.load()
        return Shrunk(encoded, True, num_frames, ignored)
    # The filter is to see at least two pixels for one.
    is_scaled = image.draft(None, (2 * size[0], 2 * size[1])) is not None
    image.load()
    orientation = _orientation(image)  # which loading a TIFF applies and removes
    if not is_scaled:
        size = _scaled(image.size, max_side)
    image = _eight_bits(image)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    image = _srgb(image, profile)
    if orientation in _TRANSPOSITIONS:
        image = image.transpose(_TRANSPOSITIONS[orientation])
    image.info.clear()  # of which Pillow would write the comment and the resolution
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Shrunk(file.getvalue(), False, num_frames, ignored)


def _check_scans(encoded: bytes, size: tuple[int, int]) -> None:
    """Refuses a JPEG with so many scans that decoding takes longer than its size says."""
    limit = _MAX_SCANNED_PIXELS // (size[0] * size[1])
    if not encoded.startswith(b"\xff\xd8") or encoded.count(b"\xff\xda") <= limit:
        return
    # The same bytes may occur in metadata, and in another picture after the end.
    position, scans = 2, 0
    while (found := _MARKER.search(encoded, position)) and found[0][1] != _END:
        scans += found[0][1] == _SCAN
        position = found.end()
        if found[0][1] >= _FIRST_WITH_LENGTH:
            position += int.from_bytes(encoded[position : position + 2], "big")
    if scans > limit:
        raise ImageError(
            f"holds {scans} scans of {size[0]} x {size[1]} pixels; at most {limit} are read at "
            "this size: save it again as a baseline JPEG"
        )


def _formats() -> list[str]:
    Image.init()
    if "HEIF" not in Image.OPEN and importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def _unread(encoded: bytes) -> str:
    if not encoded:
        return "is empty (0 bytes)"
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIC_BRANDS and "HEIF" not in Image.OPEN:
        return "is HEIC, which needs pillow-heif: pip install 'dbl-tf[heif]'"
    if encoded[4:12] in (b"ftypavif", b"ftypavis") and "AVIF" not in Image.OPEN:
        return "is AVIF, which this build of Pillow does not read"
    return f"is no image that Pillow reads here ({', '.join(_formats())})"


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1, upright, for damaged EXIF, as `pipelines.images` has it."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _BAD_EXIF:
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _scaled(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    longer = max(size)
    if longer <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longer)) for side in size)
    return width, height


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns the pixels as one of L, RGB, CMYK and LAB, without transparency."""
    mode = image.mode
    if mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if mode in ("1", "LA", "La"):
        return image.convert("L")
    if mode == "I" or mode.startswith("I;16"):
        image = image.convert("I")
        low, high = image.getextrema()
        assert isinstance(low, int) and isinstance(high, int)
        if low < 0 or high >= len(_HIGH_BYTES):
            raise ImageError(f"has gray values from {low} to {high}; up to 16 bits can be read")
        return image.point(_HIGH_BYTES, "L")
    if mode == "F":
        raise ImageError("has floating-point pixels, and nothing says which of them is white")
    return image.convert("RGB")


@dataclasses.dataclass(frozen=True)
class _Profile:
    """An ICC profile for pixels of one mode."""

    mode: str
    is_srgb: bool
    to_srgb: ImageCms.ImageCmsTransform


_MODES_OF_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_SPACES_FOR = {"L": ("GRAY", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",), "LAB": ("Lab",)}


def _profile(image: Image.Image) -> tuple[_Profile | None, str]:
    """Returns the ICC profile of an image, and why it is not used."""
    encoded = image.info.get("icc_profile")
    if not encoded:
        return None, ""
    try:
        profile, space = _read_profile(encoded)
    except (ImageCms.PyCMSError, OSError):
        return None, "cannot be read"
    mode = image.mode if image.mode in _SPACES_FOR else "RGB"
    if image.mode in ("1", "LA", "La", "I", "F") or image.mode.startswith("I;16"):
        mode = "L"
    if space not in _SPACES_FOR[mode]:
        return None, f"is for {space} and not for {mode}"
    return profile, ""


@functools.lru_cache(maxsize=64)
def _read_profile(encoded: bytes) -> tuple[_Profile | None, str]:
    """Returns a profile and the name of its color space; None for a space of no mode."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(encoded))
    space = source.profile.xcolor_space.strip()
    mode = _MODES_OF_SPACES.get(space)
    if mode is None:
        return None, space
    transform = _transform(source, mode)
    return _Profile(mode, space in ("RGB", "GRAY") and _keeps_colors(transform, mode), transform), (
        space
    )


def _transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def _keeps_colors(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = range(0, 256, 15)
    if mode == "L":
        grid = bytes(levels)
        expected = bytes(value for value in levels for _ in "RGB")
    else:
        grid = expected = bytes(itertools.chain(*itertools.product(levels, repeat=3)))
    image = Image.frombytes(mode, (len(grid) // len(mode), 1), grid)
    moved = ImageCms.applyTransform(image, transform)
    assert moved is not None
    pairs = zip(moved.tobytes(), expected, strict=True)
    return max(abs(a - b) for a, b in pairs) <= _SAME_COLOR


def _srgb(image: Image.Image, profile: _Profile | None) -> Image.Image:
    """Returns the colors in sRGB, as L or RGB."""
    if profile is not None and not profile.is_srgb:
        converted = ImageCms.applyTransform(image.convert(profile.mode), profile.to_srgb)
        assert converted is not None
        return converted
    if image.mode == "LAB":  # the one mode that Pillow converts by profiles alone
        converted = ImageCms.applyTransform(
            image, _transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")
        )
        assert converted is not None
        return converted
    return image if image.mode == "L" else image.convert("RGB")


def main() -> None:
    """Answers pickled requests on stdin until it ends, each with a pickled answer on stdout.

    A request is the path of a file or its bytes, the largest side, and the quality. The answer is
    the result of `shrink`, as a tuple, or the reason why there is none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    warnings.simplefilter("ignore")  # of what is only odd in a file, for each of many files
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    while True:
        try:
            source, max_side, quality = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple | str
        try:
            if isinstance(source, str):
                if os.stat(source).st_size > _MAX_FILE_BYTES:
                    raise ImageError(
                        f"has more than {_MAX_FILE_BYTES} bytes, the most that are read"
                    )
                with open(source, "rb") as file:
                    source = file.read()
            answer = dataclasses.astuple(shrink(source, max_side=max_side, quality=quality))
        except ImageError as error:
            answer = str(error)
        except OSError as error:
            answer = error.strerror or str(error)
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
