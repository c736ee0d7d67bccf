"""Labels images with an exported model: files go in, and a row for each comes out."""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dbl_tf import messages, serving
from pipelines import images, locations
from pipelines.runs.config import ResolvedConfig
from pipelines.runs.directory import check_finished
from pipelines.runs.evaluate import SavedModel
from pipelines.runs.network_inputs import BATCH_SIZE
from pipelines.runs.predictions import UnlabeledPrediction, unlabeled_writer

# The model gets at most so many bytes at once, or one file.
_BATCH_BYTES = 2**26
_MOST_FREQUENT = 5


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A file to label.

    Attributes:
        name: what to call it, in Unicode: bytes that are not UTF-8 stand as `\\xNN`.
        location: where it is.
        error: why it, or the folder at this place, cannot be read; empty if that is not yet known.
    """

    name: str
    location: str
    error: str = ""


def find_model(path: str) -> str:
    """Returns the version directory of an exported model.

    Args:
        path: a version directory, the directory of versions, or that of a run. Of several versions,
            the newest is taken.

    Raises:
        ValueError: there is no exported model at `path`. The message says whether it is a run that
            has not finished.
    """
    directory = pathlib.Path(path)
    if (directory / serving.DETAILS_FILE).exists():
        return path
    for base in (directory / "saved_model", directory):
        numbers = serving.versions(base) if base.is_dir() else []
        if numbers and (base / str(numbers[-1]) / serving.DETAILS_FILE).exists():
            return str(base / str(numbers[-1]))
    config = directory / "config.json"
    if config.exists():
        is_exported = ResolvedConfig.load(config).export
        check_finished(path, ("metrics.json", "saved_model") if is_exported else ("metrics.json",))
        raise ValueError(
            f"the run in {path} has no exported model: start its training command again without "
            "--noexport, which adds it"
        )
    raise ValueError(
        f"{path} is neither a run nor a model that this project exported: give the directory of a "
        "run, or a version of its model such as saved_model/1"
    )


def find_images(paths: Sequence[str]) -> list[ImageFile]:
    """Returns the files at some places, those of a folder sorted.

    Args:
        paths: files, and folders whose files and folders below are searched, hidden ones and those
            of file managers left out; see `locations.is_passed_over`. What does not exist, or
            cannot be listed, is in the result with the reason.

    Raises:
        ValueError: a path is a URL that TensorFlow does not read here.
    """
    locations.check_schemes(paths, "the images")
    found = []
    for path in paths:
        if locations.is_folder(path):
            found += _files_of(path)
        else:
            found.append(ImageFile(_in_unicode(path), path))
    return found


def images_of_folder(folder: str) -> list[ImageFile]:
    """Returns the files of a folder and of those below it, called by their paths in it.

    Those that `locations.is_passed_over` names are left out.

    Raises:
        ValueError: there are none, or the folder is a URL that TensorFlow does not read here.
    """
    locations.check_schemes([folder], "the folder of images")
    found = _files_of(folder)
    if not found:
        raise ValueError(f"there are no files in {folder}, besides hidden ones")
    return [
        dataclasses.replace(image, name=_in_unicode(locations.relative(image.location, folder)))
        for image in found
    ]


def label(
    model: SavedModel, files: Iterable[ImageFile], paths: Sequence[str] = ()
) -> Iterator[UnlabeledPrediction]:
    """Predicts images and yields a row for each file, in their order, as they come.

    A file is read when its turn comes, the next batch of them while the model works on one. One
    that cannot be read, or is larger than `images.MAX_FILE_BYTES`, has a row with the reason.

    Args:
        model: a model of images.
        files: the images.
        paths: the files to which the rows are written, too; see `unlabeled_writer`. They are
            complete once the last row has been taken.

    Raises:
        ValueError: the model takes features, or a name in `paths` has another ending.
        OSError: a file of `paths` cannot be written.
    """
    model.check_inputs(None)
    batches = _batches(files)
    with (
        unlabeled_writer(paths, model.class_names) as write,
        concurrent.futures.ThreadPoolExecutor(1) as reader,
    ):
        ahead = reader.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = reader.submit(next, batches, None)
            for row in _predict(model, batch):
                write(row)
                yield row


class Summary:
    """Counts what was predicted.

    Attributes:
        num_images: the number of rows.
        num_errors: the number of those with an error.
        num_unlabeled: the number of images without any label.
        label_counts: the number of images of each label.
    """

    def __init__(self) -> None:
        self.num_images = self.num_errors = self.num_unlabeled = 0
        self.label_counts: collections.Counter[str] = collections.Counter()

    def add(self, row: UnlabeledPrediction) -> None:
        """Counts a row."""
        self.num_images += 1
        self.num_errors += bool(row.error)
        self.num_unlabeled += not row.error and not row.labels
        self.label_counts.update(row.labels)

    def __str__(self) -> str:
        num_labeled = self.num_images - self.num_errors - self.num_unlabeled
        text = (
            f"{messages.counted(self.num_images, 'file')}: {num_labeled:,} with labels, "
            f"{self.num_unlabeled:,} without any above its threshold, {self.num_errors:,} that "
            "could not be read"
        )
        if not num_labeled:
            return text
        mean = self.label_counts.total() / num_labeled
        ranked = sorted(self.label_counts.items(), key=lambda item: (-item[1], item[0]))
        named = messages.first_few(
            [f"{messages.printable(name)} {count:,}" for name, count in ranked],
            limit=_MOST_FREQUENT,
        )
        return f"{text}\n{mean:.1f} labels for each image that has any: {named}"


def _files_of(folder: str) -> list[ImageFile]:
    unlisted: list[ImageFile] = []

    def refuse(error: OSError) -> None:
        location = os.fspath(error.filename or folder)
        unlisted.append(ImageFile(_in_unicode(location), location, _reason(error)))

    found = [
        ImageFile(_in_unicode(location), location)
        for location in locations.files_below(folder, on_error=refuse)
    ]
    return sorted([*found, *unlisted], key=lambda image: image.location)


def _in_unicode(name: str) -> str:
    """Returns a name with `\\xNN` for the bytes that are not UTF-8, which no text file can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _batches(files: Iterable[ImageFile]) -> Iterator[list[tuple[ImageFile, bytes]]]:
    """Reads files and yields batches of at most `BATCH_SIZE`, each with its bytes."""
    batch: list[tuple[ImageFile, bytes]] = []
    size = 0
    for file in files:
        encoded = b""
        if not file.error:
            try:
                encoded = locations.read_bounded(file.location, images.MAX_FILE_BYTES)
            except (OSError, ValueError) as error:
                reason = _reason(error) if isinstance(error, OSError) else str(error)
                file = dataclasses.replace(file, error=reason)
        if batch and (len(batch) == BATCH_SIZE or size + len(encoded) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((file, encoded))
        size += len(encoded)
    if batch:
        yield batch


def _predict(
    model: SavedModel, batch: Sequence[tuple[ImageFile, bytes]]
) -> Iterator[UnlabeledPrediction]:
    read = [encoded for file, encoded in batch if not file.error]
    probabilities, errors = model.predict_encoded(read)
    answers = zip(probabilities, errors, strict=True)
    for file, _ in batch:
        row, error = (None, file.error) if file.error else next(answers)
        if row is None or error:
            yield UnlabeledPrediction(file.name, error=error)
            continue
        present = np.flatnonzero(row >= model.thresholds.values)
        labels = tuple(model.class_names[i] for i in present)
        yield UnlabeledPrediction(file.name, labels=labels, probabilities=row)
