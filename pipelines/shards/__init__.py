"""Data sets in record files: their layout, their writer and their reader."""
