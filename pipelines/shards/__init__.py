"""Data sets as record files: how they lie on disk, and writing them here or on many machines."""
