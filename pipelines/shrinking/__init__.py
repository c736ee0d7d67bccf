"""Small JPEGs of images of any format and size: the data of tables and of shards.

`jpegs` makes one of an image by Pillow alone, `processes` many at once without TensorFlow, and
`table` a new table, which outlives a killed process.
"""

from pipelines.shrinking.jpegs import ImageError, Settings, Shrunk, shrink

__all__ = ["ImageError", "Settings", "Shrunk", "shrink"]
