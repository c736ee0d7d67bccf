"""The rows of a table as all layouts give them: images, splits, labels, and where they stand."""

import array
import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import numpy as np


class Places(Sequence[Any]):
    """Where rows stand: their numbers, with the name of their file if there are several.

    Args:
        numbers: the line or entry of each row, counted from 1, int (N,).
        files: the names of the files.
        file_of_row: the position in `files` of each row's file, int (N,); None for one file.
    """

    def __init__(
        self,
        numbers: np.ndarray,
        files: Sequence[str] = (),
        file_of_row: np.ndarray | None = None,
    ):
        self._numbers, self._files, self._file_of_row = numbers, files, file_of_row

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: Any) -> "Places": ...
    def __getitem__(self, index: Any) -> Any:
        """Returns the place of one row for messages, or the places of several."""
        numbers = self._numbers[index]
        files = None if self._file_of_row is None else self._file_of_row[index]
        if np.ndim(numbers):
            return Places(numbers, self._files, files)
        return numbers if files is None else f"{numbers} of {self._files[files]}"


@dataclasses.dataclass
class Rows:
    """The N rows of a table; label r is (label_rows[r], label_codes[r]).

    A row has no other labels, but for those of which the table says that they are not known.

    Attributes:
        images: the N images as they are written, relative to the table's folder or to `images_dir`.
        splits: positions in `splits.SPLITS`, int8 (N,).
        places: where the rows stand.
        place: what places count: "line" or "entry".
        label_rows: the row of each of M labels, int (M,), in rising order.
        label_codes: the positions of the M labels in `label_names`, int (M,).
        label_names: the different labels.
        class_names: the classes in an order of the layout's own; None to sort the labels.
        layout: the name of the layout, such as "list layout".
        reading: where images, splits and labels were found and why, for people.
        unknown_rows: the row of each of U labels that are not known, int (U,).
        unknown_codes: their positions in `label_names`, int (U,).
    """

    images: list[str]
    splits: np.ndarray
    places: Places
    place: str
    label_rows: np.ndarray
    label_codes: np.ndarray
    label_names: list[str]
    class_names: tuple[str, ...] | None
    layout: str
    reading: str
    unknown_rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    unknown_codes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))


class RowsBuilder:
    """Collects rows one by one, of one file after the other.

    Args:
        files: the names of the files; of one file, places do not name it.
    """

    def __init__(self, files: Sequence[str]):
        self.images: list[str] = []
        self._files = files
        self._splits, self._numbers = array.array("b"), array.array("q")
        self._file_of_row = array.array("i")

    def __len__(self) -> int:
        return len(self.images)

    def add(self, image: str, split: int, number: int, file: int = 0) -> int:
        """Adds a row and returns its position."""
        self.images.append(image)
        self._splits.append(split)
        self._numbers.append(number)
        if len(self._files) > 1:
            self._file_of_row.append(file)
        return len(self.images) - 1

    @property
    def splits(self) -> np.ndarray:
        """The splits of the rows, int8 (N,)."""
        return np.array(self._splits, np.int8)

    @property
    def places(self) -> Places:
        """Where the rows stand."""
        several = len(self._files) > 1
        file_of_row = np.array(self._file_of_row, np.int32) if several else None
        return Places(np.array(self._numbers, np.int64), self._files, file_of_row)
