"""The pixels of one version of the preprocessing of an evaluation."""

import base64
import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from pipelines import images

# 9 × 6 pixels with the EXIF orientation 6; literal, since encoders differ between versions.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDAA0JCgsKCA0L"
    "CgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYV"
    "FSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAG"
    "AAkDASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQID"
    "AAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZ"
    "WmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ"
    "2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcF"
    "BAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZH"
    "SElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbH"
    "yMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCrpfhu32KxCnJxW1/wjMPpH+RoorhcmzLy"
    "RrlmKrex+I//2Q=="
)


def lossless(image_format: str) -> bytes:
    y, x = np.mgrid[:6, :9]
    pixels = np.dstack([28 * x, 40 * y, 3 * x * y]).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if image_format == "GIF":  # a palette that is given, since Pillow may choose another one
        picture = Image.fromarray((x + y).astype(np.uint8), "P")
        picture.putpalette([16 * i % 256 for i in range(768)])
    file = io.BytesIO()
    picture.save(file, image_format)
    return file.getvalue()


PLAIN = [61.13, 50.0, 8.19, 162.87, 50.0, 21.81, 61.13, 150.0, 24.56, 162.87, 150.0, 65.44]
TURNED = [101.14, 127.81, 84.9, 34.33, 65.33, 30.45, 141.28, 161.82, 115.53, 77.85, 97.54, 59.44]
PALETTE = [129.63, 109.58, 125.58, 129.63, 116.79, 116.11, 136.96, 101.58, 111.72, 122.99, 135.83,
           98.65]  # fmt: skip


@pytest.mark.parametrize(
    ("image_format", "pixels", "resized"),
    [
        ("JPEG", "f6cfd87770585bdc", TURNED),
        ("PNG", "5d4ec547fbe06012", PLAIN),
        ("GIF", "ecf0e34d0fe1c2e6", PALETTE),
        ("BMP", "5d4ec547fbe06012", PLAIN),
    ],
)
def test_a_change_of_decoding_or_resizing_raises_the_version(image_format, pixels, resized):
    encoded = JPEG if image_format == "JPEG" else lossless(image_format)
    decoded = images.decode(encoded).numpy()
    found = images.read_for_evaluation(encoded, 2).numpy().ravel()
    reason = (
        "the preprocessing of an evaluation has changed: raise EVALUATION_VERSION in "
        "pipelines/images/decoding.py, then write the new pixels here"
    )
    assert images.EVALUATION_VERSION == 1, reason
    assert hashlib.sha256(decoded.tobytes()).hexdigest()[:16] == pixels, reason
    np.testing.assert_allclose(found, resized, atol=0.01, err_msg=reason)
