"""Tables of labeled images in the layouts that people have, and how each is recognized.

`reading.read` recognizes the layout of a file or folder and reads its rows: a list of labels, a
column for each class, metadata, COCO, folders, or a table for each split.
"""
