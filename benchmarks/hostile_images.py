r"""Measures what small files cost an exported model, and what a good image waits beside them.

    python -m benchmarks.hostile_images

Each of the files, of at most 1 MB, is the costliest of its kind that is known and not refused. It
is sent alone, in a process of its own, to a SavedModel of a small network with random weights. Then
a good image is sent again and again while others read the costliest JPEG, with the threads that
TensorFlow starts by itself, and with more.

The builders write what encoders do not: data that say much in few bytes, again and again.
"""

import io
import pathlib
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from benchmarks import measuring

MAX_BYTES = 1_000_000
_SIDE = 10_000  # of the square of the most pixels that are read
_IMAGE_SIDE = 224

_BLOCK = 1 << 20
# The lengths of a run of blocks that one symbol of a progressive JPEG skips (ITU T.81, G.1.2.2).
_LONGEST_RUN = 0x7FFF


def jpeg(
    width: int,
    height: int,
    scans: int,
    *,
    progressive: bool = True,
    components: int = 3,
    empty: bool = False,
) -> bytes:
    """A JPEG without subsampling, of so many scans of its first component.

    Each scan of a progressive one refines the coefficients of all blocks, which are zero. A scan
    of a sequential one has no data, and decoders go over its blocks all the same.

    Args:
        width: of the image.
        height: of the image.
        scans: their number.
        progressive: the process, SOF2 or SOF0.
        components: 3 for YCbCr, or 4 for CMYK, with Adobe's marker.
        empty: whether the scans of a progressive one have no data either.
    """
    adobe = _segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") if components == 4 else b""
    quantization = _segment(0xDB, b"\0" + bytes([1] * 64))
    frame = struct.pack(">BHHB", 8, height, width, components)
    frame += b"".join(bytes([i + 1, 0x11, 0]) for i in range(components))
    # One symbol in each table, of the code 0: the longest run of blocks, or the end of a block.
    one_code = bytes([1]) + bytes(15)
    tables = [
        _segment(0xC4, bytes([kind]) + one_code + bytes([symbol]))
        for kind, symbol in ((0x00, 0), (0x10, 0xE0 if progressive else 0))
    ]
    num_blocks = -(-width // 8) * -(-height // 8)
    # Code 0, and 14 bits that complete the run; bits of one fill the last byte.
    bits = ("0" + "1" * 14) * -(-num_blocks // _LONGEST_RUN)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    if empty or not progressive:
        data = b""
    spectrum = bytes([1, 63, 0x10]) if progressive else bytes([0, 63, 0])
    scan = _segment(0xDA, bytes([1, 1, 0]) + spectrum) + data
    start = [b"\xff\xd8", adobe, quantization, _segment(0xC2 if progressive else 0xC0, frame)]
    return b"".join([*start, *tables, scan * scans, b"\xff\xd9"])


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def png(
    width: int,
    height: int,
    *,
    color_type: int = 2,
    depth: int = 8,
    interlaced: bool = False,
    filter_type: int = 4,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of one color.

    Args:
        width: of the image.
        height: of the image.
        color_type: 0 gray, 2 RGB, 4 gray with alpha, 6 RGBA.
        depth: bits of a channel.
        interlaced: whether it is stored in the seven passes of Adam7.
        filter_type: the filter of every row; 4, of Paeth, takes the longest.
        before: chunks before the data.
        after: chunks after the data.
    """
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # first row, first column, and their steps
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    compressor = zlib.compressobj(9)
    data = bytearray()
    for top, left, row_step, column_step in passes:
        columns = len(range(left, width, column_step))
        row = bytes([filter_type]) + bytes(columns * channels * depth // 8)
        rows = len(range(top, height, row_step)) if columns else 0
        together = max(1, _BLOCK // len(row))
        for first in range(0, rows, together):
            data += compressor.compress(row * min(together, rows - first))
    data += compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    parts = [png_chunk(b"IHDR", header), before, png_chunk(b"IDAT", bytes(data)), after]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def compressed_text(kind: bytes, size: int) -> bytes:
    """A chunk zTXt or iTXt of so many bytes of text."""
    start = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[kind]
    return png_chunk(kind, start + zlib.compress(bytes([32]) * size, 9))


def gif(
    width: int,
    height: int,
    *,
    canvas: tuple[int, int] | None = None,
    block: int = 255,
    frames: int = 1,
) -> bytes:
    """A GIF of one color.

    Args:
        width: of its frames.
        height: of its frames.
        canvas: width and height of its screen; those of the frames if not given.
        block: bytes in a block of data.
        frames: their number.
    """
    codes = _lzw_of_zeros(width * height)
    blocks = [codes[i : i + block] for i in range(0, len(codes), block)]
    data = b"".join(bytes([len(part)]) + part for part in blocks)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2" + data + b"\0"
    screen = struct.pack("<HHBBB", *(canvas or (width, height)), 0x80, 0, 0)
    return b"GIF89a" + screen + bytes([1, 2, 3, 4, 5, 6]) + frame * frames + b";"


def _lzw_of_zeros(count: int) -> bytes:
    """The LZW codes, of 2 bits at first, of so many zeros."""
    number, used, size, data = 0, 0, 3, bytearray()

    def put(code: int) -> None:
        nonlocal number, used
        number |= code << used
        used += size
        while used >= 8:
            data.append(number & 255)
            number >>= 8
            used -= 8

    clear, end = 4, 5
    while count:
        size = 3
        put(clear)
        put(0)
        count -= 1
        last, length = end, 1  # the code 6 stands for two zeros, 7 for three, and so on
        while count > length and last < 4095:
            last, length = last + 1, length + 1
            put(last)
            count -= length
            if last + 1 == 1 << size and size < 12:
                size += 1
        if 0 < count <= length and last < 4095:
            put(0 if count == 1 else end + count - 1)
            count = 0
            if last + 2 == 1 << size and size < 12:
                size += 1
    put(end)
    size = 8 - used % 8 if used % 8 else 0
    put(0)
    return bytes(data)


def webp(width: int, height: int, *, lossless: bool) -> bytes:
    """A WebP of slanted stripes, as Pillow writes it."""
    row, column = np.arange(height)[:, None], np.arange(width)[None]
    stripes = ((column // 64 + row // 32) % 256).astype(np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(np.dstack([stripes, 255 - stripes, stripes // 2]))
    picture.save(file, "WEBP", lossless=lossless, quality=30, method=0)
    return file.getvalue()


def bmp(size: int) -> bytes:
    """A BMP of a palette, of so many bytes, of which each is a pixel."""
    start = 14 + 40 + 4 * 256
    width = 1000
    height = (size - start) // width
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, 256, 0)
    head = struct.pack("<2sIHHI", b"BM", start + width * height, 0, 0, start)
    return head + info + bytes(4 * 256 + width * height)


COSTLIEST: dict[str, Callable[[], bytes]] = {
    "progressive JPEG": lambda: jpeg(_SIDE, _SIDE, 10),
    "CMYK JPEG": lambda: jpeg(_SIDE, _SIDE, 10, components=4),
    "sequential JPEG": lambda: jpeg(_SIDE, _SIDE, 10, progressive=False),
    "RGBA PNG": lambda: png(_SIDE, _SIDE, color_type=6),
    "interlaced PNG": lambda: png(_SIDE, _SIDE, color_type=6, interlaced=True),
    "16-bit PNG": lambda: png(_SIDE, _SIDE // 2, color_type=6, depth=16),
    "PNG of texts": lambda: png(8, 8, after=compressed_text(b"zTXt", 7_900_000) * 16),
    "GIF": lambda: gif(_SIDE, _SIDE),
    "GIF of tiny blocks": lambda: gif(_SIDE, _SIDE, block=1),
    "GIF of a tiny frame": lambda: gif(8, 8, canvas=(_SIDE, _SIDE)),
    "BMP": lambda: bmp(MAX_BYTES),
    "lossy WebP": lambda: webp(16_383, 6_103, lossless=False),
    "lossless WebP": lambda: webp(16_383, 6_103, lossless=True),
}


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_list("files", list(COSTLIEST), "Files to measure, by name."),
        flags.DEFINE_list("slow_images", ["2", "4"], "Costly images that are read at once."),
        flags.DEFINE_list("threads", ["0", "8"], "Inter-op threads; 0 for TensorFlow's choice."),
    ]


def measure(files: list[str], slow_images: list[str], threads: list[str]) -> dict[str, Any]:
    """Measures each file, and the waiting, in processes of their own.

    Raises:
        ValueError: a file is not known by this name.
    """
    if unknown := set(files) - COSTLIEST.keys():
        raise ValueError(f"--files: no {sorted(unknown)}; there are {list(COSTLIEST)}")
    with tempfile.TemporaryDirectory() as folder:
        measuring.in_process_of_its_own(_export, folder)
        costs = {name: _cost_of(name, folder) for name in files}
        waiting = {
            count: {
                number: measuring.in_process_of_its_own(_wait, folder, int(number), int(count))
                for number in slow_images
            }
            for count in threads
        }
    return {"costs": costs, "waiting": waiting}


def _cost_of(name: str, folder: str) -> dict[str, Any]:
    # Written by another process than the one whose memory is measured.
    encoded = COSTLIEST[name]()
    if len(encoded) > MAX_BYTES:
        raise ValueError(f"{name} has {len(encoded)} bytes, more than {MAX_BYTES}")
    return measuring.in_process_of_its_own(_answer, folder, encoded)


def _export(folder: str) -> None:
    """Writes the SavedModel of a small network, which costs little itself."""
    from dbl_tf import LabelStatistics, models, serving
    from pipelines import images

    backbone = models.build_backbone("small_resnet", _IMAGE_SIDE, options={"width": 4})
    serving.export(
        models.join(backbone, models.build_head(backbone.output_shape[-1], 2)),
        LabelStatistics.from_labels(np.eye(2, dtype=int), ("cat", "dog")),
        lambda encoded: images.read_batch(encoded, _IMAGE_SIDE),
        lambda image: images.resize(image, _IMAGE_SIDE),
        pathlib.Path(folder) / "saved_model",
        thresholds=np.full(2, 0.5),
        thresholds_from="train",
        example_image=png(500, 375),
    )


def _load(folder: str) -> Callable[[bytes], str]:
    """The function from an image to its error, after a first call."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(pathlib.Path(folder) / "saved_model" / "1"))
    signature = loaded.signatures["serving_default"]

    def serve(encoded: bytes) -> str:
        return signature(image_bytes=tf.constant([encoded]))["error"].numpy()[0].decode()

    serve(png(500, 375))
    return serve


def _answer(folder: str, encoded: bytes) -> dict[str, Any]:
    """Time and memory of one request, and its error."""
    serve = _load(folder)
    with measuring.Stage() as stage:
        error = serve(encoded)
    return stage.figures() | {"bytes": len(encoded), "error": error}


def _wait(folder: str, slow_images: int, threads: int) -> dict[str, Any]:
    """Seconds of requests of a good image, alone and while costly ones are read."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(threads)
    serve = _load(folder)
    good, slow = png(500, 375), COSTLIEST["progressive JPEG"]()

    def seconds() -> float:
        start = time.perf_counter()
        serve(good)
        return time.perf_counter() - start

    alone = [seconds() for _ in range(20)]
    others = [threading.Thread(target=serve, args=(slow,)) for _ in range(slow_images)]
    for thread in others:
        thread.start()
    time.sleep(0.1)
    beside = []
    while any(thread.is_alive() for thread in others):
        beside.append(seconds())
    return {
        "alone": measuring.quartiles(alone),
        "beside": measuring.quartiles(beside),
        "longest": max(beside),
    }


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as tables."""
    costs = [
        [
            name,
            figures["bytes"],
            f"{figures['cpu_seconds']:.1f}",
            f"{figures['seconds']:.1f}",
            f"{figures['mib_peak'] - figures['mib_before']:.0f}",
            figures["error"] or "-",
        ]
        for name, figures in result["costs"].items()
    ]
    waiting = [
        [
            "default" if count == "0" else count,
            number,
            *(f"{figures[kind]['median']:.3f}" for kind in ("alone", "beside")),
            f"{figures['longest']:.1f}",
        ]
        for count, of_count in result["waiting"].items()
        for number, figures in of_count.items()
    ]
    return "\n\n".join(
        [
            measuring.table(["file", "bytes", "CPU s", "s", "additional MiB", "error"], costs),
            measuring.table(
                ["inter-op threads", "slow images", "alone, s", "beside, s", "longest, s"], waiting
            ),
        ]
    )


if __name__ == "__main__":
    measuring.run("hostile_images", define_flags, measure, describe)
