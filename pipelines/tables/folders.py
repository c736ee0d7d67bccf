"""A folder of folders of images, each named after the label of its images.

Folders named after splits may stand above those of the labels. An image that lies in several
folders of a split, with the same file name and the same bytes, is one image with several labels;
files of the same name with other bytes are different images.
"""

import filecmp
import os
from collections.abc import Sequence

from pipelines import locations
from pipelines.findings import Findings
from pipelines.tables import splits, text
from pipelines.tables.text import TableError


def has_images(folder: str) -> bool:
    """Returns whether a folder of folders holds an image at any depth."""
    return next(iter(_images(folder)), None) is not None


def read(folder: str) -> tuple[list[str], list[str], list[list[str]]]:
    """Finds the images of a folder of folders.

    Args:
        folder: the folder.

    Returns:
        For each image its path relative to the folder, its split, and its labels.

    Raises:
        TableError: an image lies too high or too deep to have a label, or lies in two splits.
    """
    paths = list(_images(folder))
    parts = [path.split(os.sep) for path in paths]
    tops = {names[0] for names in parts if len(names) > 1}
    has_splits = bool(tops) and all(splits.split_of(top) for top in tops)
    depth = 3 if has_splits else 2
    problems = Findings(folder, "image")
    example = "train/dog/1.jpg" if has_splits else "dog/1.jpg"
    for number, (path, names) in enumerate(zip(paths, parts, strict=True), start=1):
        if len(names) != depth:
            kind = (
                "images that do not lie in a folder of a label"
                if len(names) < depth
                else "images below the folder of a label"
            )
            problems.add(f"{kind}, as {example} does", number, repr(path))
    problems.raise_if_any(TableError)

    first_of_name: dict[str, list[int]] = {}
    images: list[str] = []
    split_of_image: list[str] = []
    labels: list[list[str]] = []
    for path, names in zip(paths, parts, strict=True):
        split = splits.split_of(names[0]) if has_splits else None
        same = _same(folder, path, images, first_of_name.get(names[-1], ()))
        if same is None:
            first_of_name.setdefault(names[-1], []).append(len(images))
            images.append(path)
            split_of_image.append(split or "train")
            labels.append([names[-2].strip()])
        elif split_of_image[same] != (split or "train"):
            problems.add(
                "images in more than one split, so that training images would be tested on",
                len(images),
                f"{path!r} holds the same bytes as {images[same]!r}",
            )
        else:
            labels[same].append(names[-2].strip())
    problems.raise_if_any(TableError)
    return images, split_of_image, labels


def _images(folder: str):
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not locations.is_passed_over(name))
        for name in sorted(files):
            if text.is_image_name(name) and not locations.is_passed_over(name):
                yield os.path.relpath(os.path.join(parent, name), folder)


def _same(folder: str, path: str, images: Sequence[str], candidates: Sequence[int]) -> int | None:
    for i in candidates:
        first, second = os.path.join(folder, images[i]), os.path.join(folder, path)
        if filecmp.cmp(first, second, shallow=False):
            return i
    return None
