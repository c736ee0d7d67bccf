"""Makes a table of small JPEGs from a table of images of any format and size.

The folder that is written holds

* `images/`: the JPEGs;
* `prepared.jsonl`: the manifest: the settings, and for each JPEG that is finished, what it was made
  of;
* `examples.jsonl`: the new table, once all images are done;
* `bad_images.csv`: the images that cannot be used, if there are any.

A process may be killed at any moment. The next one takes what the manifest holds for finished, as
long as the image it was made of has the same size and time, and makes the rest.
"""

import collections
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any

import msgspec

from dbl_tf import atomic, terminal
from dbl_tf.cores import usable_cores
from dbl_tf.lock import Lock
from dbl_tf.messages import counted
from pipelines import locations
from pipelines.datasets import LoadOptions, image_checks, table
from pipelines.datasets.image_checks import BadImage, BadImagesError
from pipelines.datasets.options import TableOptions
from pipelines.examples import LabelledData
from pipelines.shrinking import processes
from pipelines.shrinking.jpegs import ImageError, Settings, Shrunk

EXAMPLES_NAME = "examples.jsonl"
MANIFEST_NAME = "prepared.jsonl"
BAD_IMAGES_NAME = "bad_images.csv"
IMAGES_NAME = "images"

_OWN_NAMES = {EXAMPLES_NAME, MANIFEST_NAME, BAD_IMAGES_NAME, IMAGES_NAME, Lock.NAME}
# The longest part of a file name that comes from the image's, and the folders that are kept.
_LONGEST_NAME = 60
_MOST_FOLDERS = 3
_UNSAFE = re.compile(r"[^\w.-]+")


class PreparationError(ValueError):
    """A table cannot be prepared in this folder."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A finished JPEG, as a line of the manifest describes it.

    Attributes:
        source: the location of the image it was made of.
        source_size: the number of its bytes then.
        source_version: its time then, or a digest; see `locations.Status`.
        image: the path of the JPEG, relative to the folder.
        size: the number of bytes of the JPEG.
        is_copy: see `Shrunk`.
        num_frames: see `Shrunk`.
        ignored_profile: see `Shrunk`.
    """

    source: str
    source_size: int
    source_version: str
    image: str
    size: int
    is_copy: bool
    num_frames: int
    ignored_profile: str


@dataclasses.dataclass(frozen=True)
class PreparedTable:
    """A table of small JPEGs, and how it was made.

    Attributes:
        examples: the path of the table.
        images: the JPEGs of its rows.
        num_new: the number of them that were made now; the others were finished before.
        bad: the images whose rows are left out, all of which `bad_images.csv` lists.
    """

    examples: str
    images: Sequence[Prepared]
    num_new: int
    bad: Sequence[BadImage]

    def __str__(self) -> str:
        """Formats the numbers of images by what was done with them."""
        copies = sum(each.is_copy for each in self.images)
        megabytes = [
            sum(sizes) / 1e6
            for sizes in (
                [each.source_size for each in self.images],
                [each.size for each in self.images],
            )
        ]
        lines = [
            f"{self.examples}: {counted(len(self.images), 'image')}, {megabytes[1]:,.1f} MB of "
            f"{megabytes[0]:,.1f}; {copies:,} copied as they were; {self.num_new:,} made now, "
            f"{len(self.images) - self.num_new:,} before"
        ]
        if several := [each for each in self.images if each.num_frames > 1]:
            lines.append(
                "images with several frames or pages, of which the first is taken: "
                f"{len(several):,}"
            )
        profiles = collections.Counter(each.ignored_profile for each in self.images)
        lines += [
            f"images whose ICC profile {reason}, and is not used: {count:,}"
            for reason, count in sorted(profiles.items())
            if reason
        ]
        if self.bad:
            path = os.path.join(os.path.dirname(self.examples), BAD_IMAGES_NAME)
            lines.append(
                f"images that cannot be used, and are left out: {len(self.bad):,} ({path})"
            )
        return "\n".join(lines)


def write(
    options: TableOptions,
    load_options: LoadOptions,
    output_dir: str | os.PathLike,
    settings: Settings,
    *,
    num_processes: int | None = None,
) -> PreparedTable:
    """Writes JPEGs of at most `settings.max_side` pixels, and a table that names them.

    The table is JSON lines with the fields image, split and labels, where labels are a list; where
    some are unknown, there is a field for each class in their place, with 0, 1 or −1. It has
    a row for each image that `table.load` gives, in the order of the splits. The originals are read
    only. The name of a JPEG is made of the name of its image and of a digest of its path, so that
    no two have the same one.

    Args:
        options: the table of the images.
        load_options: the options that all sources have, of which `check_images` does not count:
            each image is decoded. A test split that `test_fraction` sets aside is that of the new
            table.
        output_dir: a local folder, which is created, or has been written with the same settings.
        settings: the size and quality of the JPEGs.
        num_processes: the number of processes; None for that of the usable cores.

    Raises:
        PreparationError: the folder holds anything else, was written with other settings, or holds
            originals.
        BadImagesError: images cannot be used, and `load_options.skip_bad_images` does not leave
            them out. The others are finished, and all of the bad ones are listed.
        dbl_tf.lock.InUseError: another process writes to the folder.
        ValueError: the table cannot be used.
    """
    if locations.scheme_of(output_dir):
        raise PreparationError(f"output_dir must be a local folder; found {output_dir}")
    folder = pathlib.Path(locations.absolute(output_dir))
    data, missing = _load(options, load_options)
    files = [file for split in data.splits.values() for file in split.files]
    images_dir = options.images_dir or os.path.dirname(locations.absolute(options.examples))
    images_dir = locations.absolute(images_dir)
    _check_originals_are_elsewhere(folder, files, options, images_dir)
    _check_holds_nothing_else(folder)

    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder) as lock:
        lock.acquire()
        atomic.remove_incomplete(folder)
        finished = _read_manifest(folder, settings)
        versions, bad = _versions(files, missing)
        todo = [
            file
            for file in files
            if file in versions and not _is_finished(finished.get(file), versions[file], folder)
        ]
        for file in todo:
            finished.pop(file, None)
        _write_manifest(folder, settings, finished.values())
        names = {file: _name(file, images_dir) for file in todo}
        num_finished = len(files) - len(todo) - len(bad)
        if num_finished:
            print(
                f"{folder}: {num_finished:,} of {counted(len(files), 'image')} are finished",
                flush=True,
            )
        finished, failed = _prepare(
            folder,
            todo,
            names,
            versions,
            finished,
            settings,
            num_processes or usable_cores(),
        )
        bad |= failed
        # In the order of the table, whatever was finished when.
        ordered = {
            file: finished.pop(file) for file in files if file in finished and file not in bad
        }
        _write_manifest(folder, settings, [*ordered.values(), *finished.values()])
        found = [BadImage(i, file, bad[file]) for i, file in enumerate(files) if file in bad]
        _write_bad_images(folder, found)
        if found and not load_options.skip_bad_images:
            (folder / EXAMPLES_NAME).unlink(missing_ok=True)
            raise BadImagesError(
                f"{len(found):,} of {len(files):,} images of {options.examples} cannot be used:\n"
                f"{image_checks.describe(found, images_dir=images_dir)}\n"
                f"All of them are listed in {folder / BAD_IMAGES_NAME}. Repair these images or "
                "remove them from the table, and start the command again; --skip_bad_images "
                "leaves their rows out.",
                found,
            )
        if not ordered:
            raise PreparationError(f"{options.examples} has no image that can be used")
        examples = _write_table(folder, data, ordered)
    return PreparedTable(examples, list(ordered.values()), len(todo) - len(failed), found)


def _load(
    options: TableOptions, load_options: LoadOptions
) -> tuple[LabelledData, Mapping[str, str]]:
    """Returns the data, and by file the reasons why some of them are not there."""
    load_options = dataclasses.replace(load_options, check_images="exists", skip_bad_images=False)
    try:
        return table.load(options, load_options), {}
    except BadImagesError as error:
        if error.data is None:
            raise
        return error.data, {image.path: image.reason for image in error.bad}


def _check_originals_are_elsewhere(
    folder: pathlib.Path, files: Sequence[str], options: TableOptions, images_dir: str
) -> None:
    real = os.path.realpath(folder)
    if real == os.path.realpath(images_dir):
        raise PreparationError(f"{folder} is the folder of the images; choose a new output_dir")
    if os.path.isdir(options.examples) and _is_below(real, os.path.realpath(options.examples)):
        raise PreparationError(
            f"{folder} is in {options.examples}, whose folders are labels or splits; choose an "
            "output_dir elsewhere"
        )
    originals = [options.examples, *filter(None, [options.class_names]), *files]
    parents: dict[str, str] = {}
    for original in originals:
        if not locations.scheme_of(original):
            parents.setdefault(os.path.dirname(locations.absolute(original)), original)
    for parent, original in parents.items():
        if _is_below(os.path.realpath(parent), real):
            raise PreparationError(
                f"{original} is in {folder}, where it could be overwritten; choose a new output_dir"
            )


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _check_holds_nothing_else(folder: pathlib.Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise PreparationError(f"{folder} is not a folder")
    names = {atomic.target_name(path.name) for path in folder.iterdir()}
    other = sorted(names - _OWN_NAMES)
    if other or (MANIFEST_NAME not in names and names - {Lock.NAME}):
        raise PreparationError(
            f"{folder} holds {(other or sorted(names))[0]!r}, which this command has not written; "
            "choose a new output_dir"
        )


def _read_manifest(folder: pathlib.Path, settings: Settings) -> dict[str, Prepared]:
    """Returns the finished JPEGs by their source; a line that was cut off is none."""
    path = folder / MANIFEST_NAME
    try:
        lines = path.read_bytes().decode("ascii").splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        written, *rows = [json.loads(line) for line in lines]
        written = msgspec.convert(written, dict[str, Any])
        finished = msgspec.convert(rows, list[Prepared])
    except (ValueError, RecursionError) as error:
        raise PreparationError(f"{path} is damaged ({error}); choose a new output_dir") from error
    found = {each.source: each for each in finished}
    wanted = dataclasses.asdict(settings)
    if written != wanted:
        differences = ", ".join(
            f"{name} {written.get(name)!r} and not {value!r}"
            for name, value in wanted.items()
            if written.get(name) != value
        )
        raise PreparationError(
            f"{folder} was prepared with other settings ({differences}); choose a new output_dir"
        )
    return found


def _write_manifest(
    folder: pathlib.Path, settings: Settings, finished: Collection[Prepared]
) -> None:
    with (
        atomic.replacing(folder / MANIFEST_NAME) as tmp_path,
        open(tmp_path, "w", encoding="ascii", newline="") as file,
    ):
        file.write(_line(dataclasses.asdict(settings)))
        file.writelines(_line(dataclasses.asdict(each)) for each in finished)


def _line(fields: Mapping[str, Any]) -> str:
    return f"{json.dumps(fields)}\n"


def _versions(
    files: Sequence[str], missing: Mapping[str, str]
) -> tuple[dict[str, locations.Status], dict[str, str]]:
    """Returns the state of each file that is there, and the reasons why others are not."""
    found: dict[str, locations.Status] = {}
    bad = dict(missing)
    for file in files:
        if file not in bad:
            try:
                found[file] = locations.status(file)
            except OSError as error:
                bad[file] = error.strerror or str(error)
    return found, bad


def _is_finished(prepared: Prepared | None, source: locations.Status, folder: pathlib.Path) -> bool:
    if prepared is None:
        return False
    if (prepared.source_size, prepared.source_version) != (source.size, source.version):
        return False
    try:
        return (folder / prepared.image).stat().st_size == prepared.size
    except FileNotFoundError:
        return False


def _name(file: str, images_dir: str) -> str:
    """Returns the path of a JPEG, relative to the folder, below `images/` whatever the name is."""
    name = locations.relative(file, images_dir)
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    *folders, last = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    stem = os.path.splitext(last)[0]
    parts = [_safe(part) for part in folders[-_MOST_FOLDERS:]]
    return "/".join([IMAGES_NAME, *parts, f"{_safe(stem)}-{digest}.jpg"])


def _safe(part: str) -> str:
    # A leading dot would hide the file, and one at the end is none on Windows.
    kept = _UNSAFE.sub("_", part.encode("ascii", "replace").decode()).strip(".")
    return kept[:_LONGEST_NAME].rstrip(".") or "_"


def _prepare(
    folder: pathlib.Path,
    todo: Sequence[str],
    names: Mapping[str, str],
    versions: Mapping[str, locations.Status],
    finished: Mapping[str, Prepared],
    settings: Settings,
    num_processes: int,
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Makes JPEGs, each of which is complete on the disk before the manifest names it.

    Returns:
        All finished JPEGs by their source, and the reasons why images cannot be used.
    """
    finished, bad = dict(finished), dict[str, str]()

    def requests() -> Iterator[tuple[str, str | bytes]]:
        for file in todo:
            if locations.scheme_of(file):  # which TensorFlow alone can open
                try:
                    with locations.open_binary(file) as stream:
                        source: str | bytes = stream.read()
                except OSError as error:
                    bad[file] = str(error)
                    continue
            else:
                source = file
            yield file, source

    with (
        open(folder / MANIFEST_NAME, "a", encoding="ascii", newline="") as manifest,
        terminal.Counter("preparing images", len(todo), "images") as counter,
    ):
        for file, shrunk in processes.shrink_all(
            requests(),
            settings=settings,
            num_processes=min(num_processes, max(1, len(todo))),
        ):
            if isinstance(shrunk, ImageError):
                bad[file] = str(shrunk)
            else:
                finished[file] = _publish(folder, file, names[file], versions[file], shrunk)
                _append(manifest, finished[file])
            counter.advance(1)
    return finished, bad


def _publish(
    folder: pathlib.Path, file: str, name: str, version: locations.Status, shrunk: Shrunk
) -> Prepared:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _is_below(os.path.realpath(path.parent), os.path.realpath(folder)):
        raise PreparationError(f"{path.parent} is a link that leads out of {folder}; remove it")
    with atomic.replacing(path) as tmp_path:
        tmp_path.write_bytes(shrunk.encoded)
    return Prepared(
        source=file,
        source_size=version.size,
        source_version=version.version,
        image=name,
        size=len(shrunk.encoded),
        is_copy=shrunk.is_copy,
        num_frames=shrunk.num_frames,
        ignored_profile=shrunk.ignored_profile,
    )


def _append(manifest: IO[str], prepared: Prepared) -> None:
    manifest.write(_line(dataclasses.asdict(prepared)))
    manifest.flush()  # to the system, which keeps it when this process is killed


def _write_bad_images(folder: pathlib.Path, bad: Sequence[BadImage]) -> None:
    path = folder / BAD_IMAGES_NAME
    if not bad:
        path.unlink(missing_ok=True)
        return
    with (
        atomic.replacing(path) as tmp_path,
        open(tmp_path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "reason"])
        writer.writerows([image.path, image.reason] for image in bad)


def _write_table(folder: pathlib.Path, data: LabelledData, prepared: Mapping[str, Prepared]) -> str:
    path = folder / EXAMPLES_NAME
    with (
        atomic.replacing(path) as tmp_path,
        open(tmp_path, "w", encoding="utf-8", newline="") as stream,
    ):
        for name, split in data.splits.items():
            for i, file in enumerate(split.files):
                if file in prepared:
                    row = {
                        "image": prepared[file].image,
                        "split": name,
                        **table.label_fields(split.labels, split.unknown, i, data.class_names),
                    }
                    stream.write(f"{json.dumps(row, ensure_ascii=False)}\n")
    if any(split.unknown is not None for split in data.splits.values()):
        table.check_classes(str(path), data.class_names)
    return str(path)
