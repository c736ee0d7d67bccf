"""Small files that are costly to decode.

The builders write what encoders do not: data that say much in few bytes, again and again.
"""

import struct
import zlib

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
