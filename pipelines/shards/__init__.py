"""Data sets as record files: their layout, and writing and reading them."""
