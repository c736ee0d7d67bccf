"""Small JPEGs of images of any format and size, for tables and shards.

`jpegs` makes one of an image by Pillow alone, and `processes` many at once without TensorFlow.
"""

from pipelines.shrinking.jpegs import ImageError, Settings, Shrunk, shrink

__all__ = ["ImageError", "Settings", "Shrunk", "shrink"]
