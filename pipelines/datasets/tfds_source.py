"""Any multi-label image data set of TensorFlow Datasets.

Labels are read by one pass that decodes no image, and are remembered; images stay the encoded bytes
that the data set stores, and are read by position: by TFDS's random-access format ArrayRecord
where the data set is prepared in it, else by the places of the records in its TFRecord files, so
that no second copy of the data is needed.
"""

import dataclasses
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from dbl_tf.settings import REQUIRED, setting
from pipelines import record_files
from pipelines.datasets import assembly
from pipelines.datasets.source import PHOTOGRAPHS, LoadOptions, Source, SourceOptions
from pipelines.examples import Examples, LabelledData

_BATCH = 1024
_NUM_SHOWN = 5
# TFRecord: a length, its checksum, the record, its checksum.
_HEADER, _LENGTH, _FOOTER = 12, struct.Struct("<Q"), 4
# What a multi-hot example with a value other than 0 and 1 is marked with.
_NOT_MULTI_HOT = -1
_TENSORS = (tfds.features.Tensor, tfds.features.Scalar)  # and not what is derived from them


class TfdsError(ValueError):
    """A data set of TensorFlow Datasets that is not there, or cannot be used as asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedDataOptions(SourceOptions):
    """Where data of TensorFlow Datasets, or the original folders of a benchmark, are found."""

    data_dir: str | None = setting(
        None,
        "Folder of TensorFlow Datasets, or the one that holds VOCdevkit or coco. The default is "
        "that of TensorFlow Datasets.",
        is_path=True,
    )
    download: bool = setting(
        False,
        "Let TensorFlow Datasets download data that are not there.",
        affects_result=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PreparedDataOptions):
    """Options of any data set of TensorFlow Datasets.

    Attributes:
        tfds_name: as `tfds.builder` takes it: "voc/2007", "my_set/config:1.0.0".
        label_feature: a sequence of class labels or of texts, given with slashes where it lies
            within others ("objects/label"), or a tensor of C zeros and ones. Class labels have
            names and an order; texts are sorted; the classes of a tensor are called 0 to C − 1.
        train_split: a split, or an expression of TFDS's: "train[:90%]", "train+validation".
    """

    tfds_name: str = setting(
        REQUIRED,
        "Name of the data set, such as voc/2007.",
        required_as="the name of a data set of TensorFlow Datasets",
    )
    label_feature: str = setting(
        REQUIRED,
        "Feature that holds the labels, such as objects/label.",
        required_as="the name of its feature that holds the labels",
    )
    image_feature: str | None = setting(
        None, "Feature that holds the image; needed only where there are several."
    )
    train_split: str = setting("train", "Split to train on.", for_training=True)
    val_split: str | None = setting(None, "Split to validate on.", for_training=True)
    test_split: str = setting("test", "Split to test on.")

    @property
    def data_name(self) -> str:
        """The name of the data set."""
        return self.tfds_name


def load(
    options: Options, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Reads a data set of TensorFlow Datasets with several labels an image.

    Args:
        options: which data set, features and splits.
        load_options: how images are checked. "exists" checks none, since the records hold them.
        splits: those needed of "train", "val" and "test"; None for all.

    Returns:
        Examples called SPLIT/POSITION.

    Raises:
        TfdsError: the data set, a split or a feature was not found or is of another kind; the
            message lists those that would do.
        image_checks.BadImagesError: images that cannot be used.
    """
    expressions: dict[str, str | None] = {
        "train": options.train_split,
        "val": options.val_split,
        "test": options.test_split,
    }
    if splits:
        expressions = {name: expressions[name] for name in splits}
        if None in expressions.values():
            raise TfdsError("a val split is needed: name one of the data set's, --val_split")
    builder = open_builder(options.tfds_name, data_dir=options.data_dir, download=options.download)
    form = _label_form(builder, options.label_feature)
    image_feature = _image_feature(builder, options.image_feature)
    opened = {
        name: open_split(builder, expression)
        for name, expression in expressions.items()
        if expression
    }
    columns = {
        name: read_columns(
            split,
            features=_nested(form.path, True),
            parse=lambda example: (tf.constant(""), form.codes(_at(example, form.path))),
            key=options.label_feature,
            cache_dir=load_options.cache_path,
        )
        for name, split in opened.items()
    }
    classes = form.class_names
    if classes is None:
        classes = tuple(
            sorted({text for column in columns.values() for text in column.codes.tolist()})
        )
        if not classes:
            raise TfdsError(
                f"{options.tfds_name}: {options.label_feature} is empty in every example"
            )
        index = {text: code for code, text in enumerate(classes)}
        columns = {
            name: dataclasses.replace(
                column, codes=np.array([index[text] for text in column.codes], np.int64)
            )
            for name, column in columns.items()
        }
    loaded = {}
    for name, split in opened.items():
        examples = record_examples(
            split,
            names=[f"{split.expression}/{i}" for i in range(len(split.positions))],
            labels=columns[name].labels(len(classes), f"{split}, {options.label_feature}"),
            image_feature=image_feature,
        )
        loaded[name] = assembly.without_bad_images(
            examples,
            source=str(split),
            in_records=True,
            check_images=load_options.check_images,
            skip_bad_images=load_options.skip_bad_images,
            cache_dir=load_options.cache_path,
        )
    logging.info(
        "%s: %s images; %d classes",
        builder.info.full_name,
        ", ".join(f"{len(examples)} {name}" for name, examples in loaded.items()),
        len(classes),
    )
    return LabelledData(class_names=tuple(classes), splits=loaded)


def open_builder(
    name: str, *, data_dir: str | os.PathLike | None, download: bool
) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set; downloads and prepares it first where that is asked for.

    Raises:
        TfdsError: there is no such data set; or it is not prepared and must not be, or cannot be,
            downloaded.
    """
    builder = _builder(name, data_dir)
    if builder.is_prepared():
        return builder
    if not download:
        raise TfdsError(
            f"{name} is not prepared: there is no {builder.data_path}. Give --data_dir, the folder "
            "of TensorFlow Datasets that holds it, or --download"
        )
    folder = pathlib.Path(builder.data_path)
    builder = _builder(name, data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the network, the disk, an archive: each has its own kinds
        raise TfdsError(
            f"{name} could not be downloaded and prepared in {folder}: {error}\nArchives that you "
            f"have are taken from {_root(data_dir)}/downloads/manual, under their original names"
        ) from error
    return builder


def is_prepared(name: str, data_dir: str | os.PathLike | None) -> tuple[bool, str]:
    """Whether TFDS has a data set prepared, and the folder where it is or would be."""
    builder = _builder(name, data_dir)
    return builder.is_prepared(), os.fspath(builder.data_path)


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split expression.

    Attributes:
        builder: of the prepared data set.
        expression: as TFDS takes it.
        files: that hold the records; they may hold others too.
        positions: int64 (N,), of its examples among all records of the files.
        file_of_example: N strings.
        read: maps a position among all records, int64 (), to the record, string ().
    """

    builder: tfds.core.DatasetBuilder
    expression: str
    files: Sequence[str]
    positions: np.ndarray
    file_of_example: Sequence[str]
    read: Callable[[tf.Tensor], tf.Tensor]

    def __str__(self) -> str:
        return f"{self.builder.info.full_name}, {self.expression}, in {self.builder.data_path}"


def open_split(builder: tfds.core.DatasetBuilder, expression: str) -> Split:
    """Opens the record files of a split of a prepared data set.

    Args:
        builder: of the data set.
        expression: a split, or an expression of TFDS's: "train[:90%]", "train+validation".

    Raises:
        TfdsError: there is no such split, or its files are missing or damaged.
    """
    openers = {"array_record": record_files.open_array_records, "tfrecord": open_tf_records}
    file_format = builder.info.file_format.value
    if file_format not in openers:
        raise TfdsError(
            f"{builder.data_path} is prepared as {file_format}; what can be read is "
            f"{' and '.join(openers)}"
        )
    try:
        instructions = builder.info.splits[expression].file_instructions
    except Exception as error:  # of TFDS's parser, of many kinds
        raise TfdsError(
            f"{builder.info.full_name} has no split {expression!r}; its splits are "
            f"{', '.join(builder.info.splits) or 'none'}"
        ) from error
    if not instructions:
        raise TfdsError(f"{builder.info.full_name}: the split {expression!r} has no examples")
    size_of = {os.fspath(part.filename): part.examples_in_shard for part in instructions}
    files = list(size_of)
    if missing := [path for path in files if not os.path.exists(path)]:
        raise TfdsError(
            f"{builder.info.full_name}, {expression}: {len(missing)} of {len(files)} record files "
            f"are missing: {', '.join(missing[:_NUM_SHOWN])}"
        )
    num_records, read = openers[file_format](files)
    if num_records != sum(size_of.values()):
        raise TfdsError(
            f"{builder.data_path}: the files of {expression} hold {num_records} records where "
            f"dataset_info.json counts {sum(size_of.values())}"
        )
    start = dict(zip(files, np.cumsum([0, *size_of.values()]).tolist(), strict=False))
    parts = [
        start[os.fspath(part.filename)] + np.arange(part.skip, part.skip + part.take)
        for part in instructions
    ]
    return Split(
        builder=builder,
        expression=expression,
        files=files,
        positions=np.concatenate(parts).astype(np.int64),
        file_of_example=[
            os.fspath(part.filename) for part in instructions for _ in range(part.take)
        ],
        read=read,
    )


@dataclasses.dataclass(frozen=True)
class Columns:
    """What is read of every example of a split, in the order of the records.

    Attributes:
        names: N strings.
        codes: the labels of all examples, one after the other: classes, or texts.
        num_codes: int64 (N,), how many each example has.
    """

    names: np.ndarray
    codes: np.ndarray
    num_codes: np.ndarray

    def labels(self, num_classes: int, source: str) -> scipy.sparse.csr_array:
        """Multi-hot labels, bool (N, C) CSR; `source` is named where a code is no class."""
        wrong = np.flatnonzero((self.codes < 0) | (self.codes >= num_classes))
        if wrong.size:
            rows = np.repeat(np.arange(len(self.num_codes)), self.num_codes)[wrong]
            raise TfdsError(
                f"{source}: {len(np.unique(rows))} examples hold something other than classes 0 to "
                f"{num_classes - 1}, or zeros and ones; the first is example {rows[0]}. Splits "
                "without annotations are often filled so"
            )
        return assembly.label_matrix(self.codes, self.num_codes, num_classes)


def read_columns(
    split: Split,
    *,
    features: Mapping[str, Any],
    parse: Callable[[Mapping[str, Any]], tuple[tf.Tensor, tf.Tensor]],
    key: str,
    cache_dir: str | os.PathLike,
) -> Columns:
    """Reads names and labels by one pass over the records, decoding these features alone.

    The result is remembered in `cache_dir` for as long as the record files are the same.

    Args:
        split: to read.
        features: which to decode, as `tfds.decode.PartialDecoding` takes them.
        parse: maps a decoded example to its name, string (), and labels, of rank 1. It runs inside
            `tf.data`.
        key: names what `parse` does.
        cache_dir: of what is remembered.

    Raises:
        TfdsError: a record that cannot be read.
    """
    info = split.builder.info
    digest = assembly.digest_of(info.full_name, split.expression, key, files=split.files)
    cached = pathlib.Path(cache_dir, "tfds_labels", f"{digest}.npz")
    if cached.exists():
        with np.load(cached) as content:
            return Columns(content["names"], content["codes"], content["num_codes"])
    print(f"reading the labels of {len(split.positions)} images of {split}")
    decoded = tfds.decode.PartialDecoding(features).extract_features(info.features)

    def parse_record(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        name, codes = parse(decoded.deserialize_example(split.read(position)))
        return name, codes, tf.size(codes, tf.int64)

    with tf.device("CPU"):
        batches = (
            tf.data.Dataset.from_tensor_slices(split.positions)
            .map(parse_record, num_parallel_calls=tf.data.AUTOTUNE)
            .ragged_batch(_BATCH)
            .prefetch(tf.data.AUTOTUNE)
        )
    bar = keras.utils.Progbar(len(split.positions), interval=1, unit_name="image")
    names, codes, num_codes = [], [], []
    try:
        for batch_names, batch_codes, batch_num_codes in batches:
            names += batch_names.numpy().tolist()
            codes += (
                tf.reshape(getattr(batch_codes, "flat_values", batch_codes), [-1]).numpy().tolist()
            )
            num_codes += batch_num_codes.numpy().tolist()
            bar.update(len(names), finalize=False)
    except tf.errors.OpError as error:
        raise TfdsError(f"{split}: a record cannot be read: {error.message}") from error
    bar.update(len(names), finalize=True)
    columns = Columns(_array(names), _array(codes), np.array(num_codes))
    cached.parent.mkdir(parents=True, exist_ok=True)
    beside = cached.with_suffix(f".{os.getpid()}.npz")
    np.savez(beside, **vars(columns))
    os.replace(beside, cached)
    return columns


def record_examples(
    split: Split, *, names: Sequence[str], labels: scipy.sparse.csr_array, image_feature: str
) -> Examples:
    """Examples whose images are read from the records by position, as encoded bytes."""
    image_only = tfds.decode.PartialDecoding({image_feature: True})
    features = image_only.extract_features(split.builder.info.features)
    decoders = {image_feature: tfds.decode.SkipDecoding()}
    with tf.device("CPU"):
        table = tf.constant(split.positions)

    def read(position: tf.Tensor) -> tf.Tensor:
        example = features.deserialize_example(split.read(table[position]), decoders=decoders)
        return example[image_feature]

    return Examples(names=names, labels=labels, read=read, files=split.file_of_example)


def open_tf_records(
    paths: Sequence[str | os.PathLike],
) -> tuple[int, Callable[[tf.Tensor], tf.Tensor]]:
    """Opens TFRecord files, which are not compressed, as one sequence of records.

    The format has no index: the places of the records are found by walking from length to length.

    Args:
        paths: of the files, in the order in which their records are counted.

    Returns:
        The number of records, and a function that reads the record at a position, int64 () →
        string (). It runs inside `tf.data`.

    Raises:
        TfdsError: names a file that is no whole TFRecord file.
    """
    paths = [os.fspath(path) for path in paths]
    of_files = [np.array(list(_record_places(path)), np.int64).reshape(-1, 2) for path in paths]
    starts, lengths = np.concatenate(of_files).T
    file_numbers = np.repeat(np.arange(len(paths)), [len(places) for places in of_files])

    def fetch(position: np.ndarray) -> bytes:
        with open(paths[file_numbers[position]], "rb") as file:
            file.seek(starts[position])
            return file.read(lengths[position])

    def read(position: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(fetch, [position], tf.string, stateful=False), ())

    return len(starts), read


def _record_places(path: str) -> Iterator[tuple[int, int]]:
    """Start and length of every record."""
    size = os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        start = 0
        while start < size:
            file.seek(start)
            header = file.read(_HEADER)
            end = start
            if len(header) == _HEADER:
                (length,) = _LENGTH.unpack_from(header)
                end = start + _HEADER + length + _FOOTER
            if not start < end <= size:
                raise TfdsError(
                    f"{path} is no whole TFRecord file: it ends at byte {size}, within the record "
                    f"that begins at byte {start}"
                )
            yield start + _HEADER, length
            start = end


@dataclasses.dataclass(frozen=True)
class _LabelForm:
    """How a feature holds labels: `codes` maps its tensor to classes, or texts, of rank 1."""

    path: tuple[str, ...]
    class_names: Sequence[str] | None  # None: the labels are texts
    codes: Callable[[tf.Tensor], tf.Tensor]


def _label_form(builder: tfds.core.DatasetBuilder, label_feature: str) -> _LabelForm:
    forms = {
        "/".join(form.path): form for form in _label_forms(builder.info.features, (), in_list=False)
    }
    if label_feature in forms:
        return forms[label_feature]
    raise TfdsError(
        f"{builder.info.full_name} has no feature {label_feature!r} with several labels an image. "
        f"Those that would do: {', '.join(forms) or 'none'}. All features: "
        f"{', '.join(_feature_names(builder.info.features))}"
    )


def _label_forms(feature: Any, path: tuple[str, ...], *, in_list: bool) -> Iterator[_LabelForm]:
    """The features that can serve as labels, at any depth below at most one sequence."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in feature.items():
            yield from _label_forms(inner, (*path, name), in_list=in_list)
    elif type(feature) is tfds.features.Sequence and not in_list:
        if _is_number_list(feature):
            yield _multi_hot(path, feature.shape[0])
        else:
            yield from _label_forms(feature.feature, path, in_list=True)
    elif isinstance(feature, tfds.features.ClassLabel):
        if in_list and feature.num_classes:
            yield _LabelForm(path, feature.names, lambda codes: tf.cast(codes, tf.int64))
    elif type(feature) in (tfds.features.Text, *_TENSORS):
        is_text = feature.tf_dtype == tf.string
        if in_list and is_text and feature.shape == ():
            yield _LabelForm(path, None, lambda texts: texts)
        elif not in_list and not is_text and len(feature.shape) == 1 and feature.shape[0]:
            yield _multi_hot(path, feature.shape[0])


def _is_number_list(sequence: tfds.features.Sequence) -> bool:
    """Whether a sequence is a tensor of fixed length in other words."""
    inner = sequence.feature
    return (
        type(inner) in _TENSORS
        and inner.shape == ()
        and inner.tf_dtype != tf.string
        and bool(sequence.shape[0])
    )


def _multi_hot(path: tuple[str, ...], num_classes: int) -> _LabelForm:
    def codes(values: tf.Tensor) -> tf.Tensor:
        values = tf.cast(values, tf.float64)
        is_multi_hot = tf.reduce_all((values == 0) | (values == 1))
        return tf.cond(
            is_multi_hot,
            lambda: tf.where(values == 1)[:, 0],
            lambda: tf.constant([_NOT_MULTI_HOT], tf.int64),
        )

    return _LabelForm(path, [str(i) for i in range(num_classes)], codes)


def _image_feature(builder: tfds.core.DatasetBuilder, image_feature: str | None) -> str:
    found = [
        name
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image) and feature.tf_dtype in (tf.uint8, tf.uint16)
    ]
    if image_feature is None and len(found) == 1:
        return found[0]
    if image_feature in found:
        return image_feature
    asked = "one image" if image_feature is None else f"an image {image_feature!r}"
    raise TfdsError(
        f"{builder.info.full_name} does not have {asked} of 8 or 16 bits; its images are: "
        f"{', '.join(found) or 'none'}. All features: "
        f"{', '.join(_feature_names(builder.info.features))}. --image_feature names one"
    )


def _feature_names(feature: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in feature.items():
            yield from _feature_names(inner, (*path, name))
    else:
        yield "/".join(path)


def _builder(
    name: str, data_dir: str | os.PathLike | None, **options: Any
) -> tfds.core.DatasetBuilder:
    """The builder; of the newest version that is prepared where that of today is not."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, **options)
    except Exception as error:  # of the name's parser, the registry, the data set itself
        raise TfdsError(
            f"TensorFlow Datasets has no {name!r}, neither among its own nor prepared in "
            f"{_root(data_dir)}: {error}"
        ) from error
    if not builder.is_prepared() and ":" not in name:
        folders = pathlib.Path(builder.data_path).parent.glob("*/dataset_info.json")
        versions = [path.parent.name for path in folders]
        versions = [version for version in versions if tfds.core.Version.is_valid(version)]
        if versions:
            newest = max(versions, key=tfds.core.Version)
            return tfds.builder_from_directory(pathlib.Path(builder.data_path).with_name(newest))
    return builder


def _root(data_dir: str | os.PathLike | None) -> str:
    return os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)


def _nested(path: Sequence[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def _at(example: Mapping[str, Any], path: Sequence[str]) -> tf.Tensor:
    for name in path:
        example = example[name]
    return example


def _array(values: Sequence[int | bytes]) -> np.ndarray:
    """Integers, or texts decoded; empty where there are none."""
    if values and isinstance(values[0], bytes):
        return np.array([value.decode() for value in values])
    return np.array(values, np.int64)


SOURCE = Source(options=Options, defaults=PHOTOGRAPHS, load=load)
