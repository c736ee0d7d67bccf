"""COCO documents: images, annotations and categories, as labels of whole images."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.findings import Findings
from pipelines.tables import splits
from pipelines.tables.rows import RowsBuilder
from pipelines.tables.text import TableError

_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")


class CocoReader:
    """Reads the images of COCO documents of one or several splits.

    The label of an annotation is the category of its image. Images without annotations have no
    labels. An image may say its split in a field `split`.

    Args:
        builder: receives the images.
    """

    def __init__(self, builder: RowsBuilder):
        self._builder = builder
        self._rows: list[int] = []
        self._codes: list[int] = []
        self._codes_by_name: dict[str, int] = {}
        self._supercategories: set[str] = set()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The categories in the order of their ids."""
        return tuple(self._codes_by_name)

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the row of each label and the position of its class, int64 (M,) each."""
        return np.array(self._rows, np.int64), np.array(self._codes, np.int64)

    def leave_out_supercategories(self) -> list[str]:
        """Leaves out categories that no annotation has and that others call their supercategory.

        Returns:
            Their names, such as that of the group of all labels that some programs write with id 0.
        """
        used = set(self._codes)
        left_out = [
            name
            for name, code in self._codes_by_name.items()
            if code not in used and name in self._supercategories
        ]
        kept = [name for name in self._codes_by_name if name not in left_out]
        new_code = {self._codes_by_name[name]: code for code, name in enumerate(kept)}
        self._codes = [new_code[code] for code in self._codes]
        self._codes_by_name = {name: code for code, name in enumerate(kept)}
        return left_out

    def read(
        self, path: str, document: Mapping[str, Any], split: str | None, file: int, folder: str
    ) -> None:
        """Reads a document.

        Args:
            path: its file, for messages.
            document: its content.
            split: the split of all images; None if they say it themselves, or are all train.
            file: the position of the file among those of the builder.
            folder: a folder that the names of files start from; "" for that of the table.

        Raises:
            TableError: something is missing or contradicts; the message gives the first of each
                kind with their positions in the lists.
        """
        problems = Findings(path, "entry")
        code_of_id = self._categories(document["categories"], problems)
        row_of_id: dict[Any, int] = {}
        for number, image in enumerate(document["images"], start=1):
            name = image.get("file_name") if isinstance(image, dict) else None
            if not isinstance(name, str) or not name.strip() or "id" not in image:
                problems.add("images without file_name and id", number, repr(image)[:80])
                continue
            key = _key(image["id"])
            if key is None or key in row_of_id:
                problems.add("images whose id another image has", number, repr(image["id"])[:80])
                continue
            own = image.get("split")
            if own is None or split is not None:
                found: str | None = split or "train"
            else:
                found = splits.split_of(own) if isinstance(own, str) else None
            if found is None:
                kind = f"unknown splits (the choices are {splits.CHOICES})"
                problems.add(kind, number, repr(own)[:80])
                continue
            name = os.path.join(folder, name) if folder else name
            row_of_id[key] = self._builder.add(name, splits.CODES[found], number, file)
        for number, annotation in enumerate(document["annotations"], start=1):
            if not isinstance(annotation, dict):
                problems.add("annotations that are no objects", number, repr(annotation)[:80])
                continue
            image, category = annotation.get("image_id"), annotation.get("category_id")
            row, code = row_of_id.get(_key(image)), code_of_id.get(_key(category))
            if row is None:
                problems.add("annotations whose image_id no image has", number, repr(image)[:80])
            elif code is None:
                kind = "annotations whose category_id no category has"
                problems.add(kind, number, repr(category)[:80])
            else:
                self._rows.append(row)
                self._codes.append(code)
        problems.raise_if_any(TableError)

    def _categories(self, categories: list[Any], problems: Findings) -> dict[Any, int]:
        names: dict[Any, str] = {}
        ids: dict[Any, Any] = {}
        for number, category in enumerate(categories, start=1):
            name = category.get("name") if isinstance(category, dict) else None
            key = _key(category.get("id")) if isinstance(category, dict) else None
            if not isinstance(name, str) or not name.strip() or key is None:
                problems.add("categories without id and name", number, repr(category)[:80])
            elif key in names or name.strip() in names.values():
                kind = "categories whose id or name another category has"
                problems.add(kind, number, repr(category)[:80])
                names.setdefault(key, name.strip())  # its annotations are no findings of their own
                ids.setdefault(key, category["id"])
            else:
                names[key], ids[key] = name.strip(), category["id"]
                above = category.get("supercategory")
                if isinstance(above, str) and above.strip() != name.strip():
                    self._supercategories.add(above.strip())
        in_order = sorted(names, key=lambda key: (isinstance(ids[key], str), ids[key]))
        return {
            key: self._codes_by_name.setdefault(names[key], len(self._codes_by_name))
            for key in in_order
        }


def _key(value: Any) -> int | str | None:
    """Returns what is equal for ids that mean the same, such as 1 and "1"; None for other values.

    Programs write numbers in one list of a document and texts in another.
    """
    if isinstance(value, str):
        return int(value) if _NUMBER.fullmatch(value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None
