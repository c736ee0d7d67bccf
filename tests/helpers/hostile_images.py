"""Bytes that are no images, or nearly: what anybody may send to a server."""

import io
import struct

import numpy as np
from PIL import Image


def generated_images() -> list[bytes]:
    """Good images of every format and of the unusual sorts."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    picture = coarse.resize((64, 48), Image.Resampling.BILINEAR)
    flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    transparent = picture.copy()
    transparent.putalpha(picture.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray(random.integers(0, 65536, (48, 64), np.uint16))
    return [
        written(picture, "JPEG"),
        written(picture, "JPEG", progressive=True, exif=exif),
        written(picture.convert("CMYK"), "JPEG"),
        written(picture, "PNG"),
        written(picture.convert("P"), "PNG"),
        written(grey16, "PNG"),
        written(picture.convert("P"), "GIF"),
        written(picture, "GIF", save_all=True, append_images=[flipped] * 3),
        written(picture, "BMP"),
        written(picture, "WEBP"),
        written(transparent, "WEBP", exif=exif),
        written(transparent, "WEBP", lossless=True),
    ]


def written(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def animated_webp() -> bytes:
    """An animation, which is refused; TensorFlow's own decoder ends the process on it."""
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    return written(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def declaring(width: int, height: int) -> list[bytes]:
    """Small files of each format that say to be so large; at most 65 535 a side."""
    jpeg, progressive, _, png, _, _, gif, _, bmp, *_ = map(bytearray, generated_images())
    for encoded, marker in ((jpeg, b"\xff\xc0"), (progressive, b"\xff\xc2")):
        struct.pack_into(">HH", encoded, encoded.index(marker) + 5, height, width)
    struct.pack_into(">II", png, 16, width, height)
    struct.pack_into("<HH", gif, 6, width, height)
    struct.pack_into("<ii", bmp, 18, width, height)
    return [bytes(encoded) for encoded in (jpeg, progressive, png, gif, bmp)]


def strings(count: int, images: list[bytes]) -> list[bytes]:
    """`count` byte strings: random, cut off and with flipped bits, from `images`."""
    random = np.random.default_rng(1)
    hostile = [b"", b"\xff", *declaring(65_535, 65_535), *declaring(50_000, 40_000)]
    animation = bytearray(animated_webp())
    hostile.append(bytes(animation))
    animation[20] ^= 2  # its header denies that it moves
    hostile.append(bytes(animation))
    images = [*images, animated_webp()]
    while len(hostile) < count:
        image = images[random.integers(len(images))]
        cut = int(random.integers(1, len(image)))
        flipped = bytearray(image)
        # Half of the flips hit the header.
        end = len(image) if random.random() < 0.5 else min(len(image), 64)
        for place in random.integers(0, end, random.integers(1, 6)):
            flipped[place] ^= 1 << random.integers(0, 8)
        hostile += [
            image[:cut],
            bytes(flipped),
            image[: random.integers(2, 40)] + random.bytes(random.integers(0, 300)),
            random.bytes(random.integers(1, 400)),
            image[:cut] + random.bytes(len(image) - cut),
        ]
    return hostile[:count]


def mutated(images: list[bytes], count: int, seed: int) -> list[bytes]:
    """`count` byte strings made of images by changes that decoders trust: lengths, parts, order.

    Parts are inserted again, taken from other images, moved and removed; bytes become the extremes
    of numbers; markers and restarts appear anywhere.
    """
    random = np.random.default_rng(seed)
    extremes = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\0\0\0\0", b"\xff" * 4]
    extremes += [b"\x7f\xff\xff\xff", b"\0\1", b"\1\0\0\0", b"\0\0\xff\xff"]
    names = [b"\xff" + bytes([marker]) for marker in (0, 1, 0xC0, 0xC2, 0xC4, 0xD0, 0xD8, 0xD9)]
    names += [b"\xff\xda", b"\xff\xdd", b"\xff\xff", b"IDAT", b"IEND", b"zTXt", b"tRNS", b"PLTE"]
    names += [b"\x21\xf9\4", b",\0\0\0\0", b";", b"VP8X", b"VP8L", b"ALPH", b"ANMF", b"EXIF"]

    def part(image: bytes) -> bytes:
        start = int(random.integers(len(image)))
        return image[start : start + int(random.integers(1, 200))]

    strings = []
    while len(strings) < count:
        image = images[random.integers(len(images))]
        for _ in range(random.integers(1, 5)):
            # Half of the changes hit the header.
            end = len(image) if random.random() < 0.5 else min(len(image), 100)
            place = int(random.integers(end))
            length = int(random.integers(1, 60))
            start, rest = image[:place], image[place:]
            image = (
                start + extremes[random.integers(len(extremes))] + rest[1:],
                start + names[random.integers(len(names))] + rest,
                start + part(images[random.integers(len(images))]) + rest,
                start + part(image) * int(random.integers(1, 50)) + rest,
                start + rest[length:],
                start + rest[length:] + rest[:length],
                start + images[random.integers(len(images))] + rest,
                start + images[random.integers(len(images))],
            )[random.integers(8)]
            if not image:
                break
        strings.append(image)
    return strings
