"""Reads any multi-label image data set of TensorFlow Datasets.

One pass, which decodes no image, reads the labels, and the cache remembers them. Images are read by
position, as the encoded bytes in the ArrayRecord or TFRecord files of the data set, so that no
second copy of the data is needed.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from dbl_tf import terminal
from dbl_tf.messages import first_few
from pipelines import cache, images, record_files
from pipelines.datasets import assembly
from pipelines.datasets.options import TfdsOptions
from pipelines.datasets.source import LoadOptions
from pipelines.examples import Examples, LabelledData
from pipelines.record_formats import FORMATS

_BATCH = 1024
_COLUMNS = cache.Kind("tfds_labels", version=2, suffix=".npz")
# Marks a multi-hot example that has a value other than 0 and 1.
_NOT_MULTI_HOT = -1
_TENSORS = (tfds.features.Tensor, tfds.features.Scalar)  # but not classes derived from them


class TfdsError(ValueError):
    """A data set of TensorFlow Datasets does not exist or cannot be used as requested."""


def load(
    options: TfdsOptions, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Reads a data set of TensorFlow Datasets with several labels per image.

    The names of the examples are SPLIT/POSITION.

    Args:
        options: the options of the data set, its features and splits.
        load_options: the options that all sources have. The check "exists" does nothing here,
            because records always exist.
        splits: the splits to load, of "train", "val" and "test"; None for all.

    Raises:
        TfdsError: the data set, a split or a feature was not found or is of another kind; the
            message lists those that can be used.
        image_checks.BadImagesError: some images cannot be used.
    """
    expressions: dict[str, str | None] = {
        "train": options.train_split,
        "val": options.val_split,
        "test": options.test_split,
    }
    if splits or load_options.test_fraction:
        needed = load_options.needed(splits)
        if not splits and options.val_split:
            needed += ("val",)
        expressions = {name: expressions[name] for name in needed}
        if None in expressions.values():
            raise TfdsError("a val split is needed: name one of the data set's, --val_split")
    builder = open_builder(options.tfds_name, data_dir=options.data_dir, download=options.download)
    if options.test_split in builder.info.splits:
        load_options.check_no_test(f"{builder.info.full_name}")
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
    parts = {
        name: record_examples(
            split,
            names=[f"{split.expression}/{i}" for i in range(len(split.positions))],
            labels=columns[name].labels(len(classes), f"{split}, {options.label_feature}"),
            image_feature=image_feature,
        )
        for name, split in opened.items()
    }
    origins = {name: str(split) for name, split in opened.items()}
    if load_options.test_fraction:
        parts["train"], parts["test"] = parts["train"].divide(
            load_options.test_share(parts["train"].labels)
        )
        origins["test"] = origins["train"]
    loaded = {}
    for name in splits or parts:
        loaded[name] = assembly.without_bad_images(
            parts[name],
            source=origins[name],
            in_records=True,
            check_images=load_options.check_images,
            skip_bad_images=load_options.skip_bad_images,
            cache_dir=load_options.cache_path,
        )
    logging.info(
        "%s: %s images; %s classes",
        builder.info.full_name,
        ", ".join(f"{len(examples):,} {name}" for name, examples in loaded.items()),
        f"{len(classes):,}",
    )
    return LabelledData(
        class_names=tuple(classes), splits=loaded, origin=f"TFDS {builder.info.full_name}"
    )


def open_builder(
    name: str, *, data_dir: str | os.PathLike | None, download: bool
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a prepared data set.

    Args:
        name: the name that `tfds.builder` takes.
        data_dir: the folder in which TFDS keeps its data sets; None for its default.
        download: whether TFDS may download and prepare the data set first, if it is not prepared.

    Raises:
        TfdsError: there is no such data set, or it is not prepared and may not be, or cannot be,
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
    except Exception as error:  # network, disk and archives raise errors of many types
        raise TfdsError(
            f"{name} could not be downloaded and prepared in {folder}: {error}\nArchives that you "
            f"already have are taken from {_root(data_dir)}/downloads/manual, under their original "
            "names"
        ) from error
    return builder


def is_prepared(name: str, data_dir: str | os.PathLike | None) -> tuple[bool, str]:
    """Returns whether TFDS has prepared a data set, and the folder where it is or would be."""
    builder = _builder(name, data_dir)
    return builder.is_prepared(), os.fspath(builder.data_path)


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split expression.

    Attributes:
        builder: the builder of the prepared data set.
        expression: the expression, as TFDS takes it.
        files: the files that hold the records; they may hold other records too.
        positions: the positions of its N examples among all records of the files, int64 (N,).
        file_of_example: the path of the file that holds each example.
        read: a function from positions among all records, int64 of any shape, to the records,
            string of the same shape.
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
        builder: the builder of the data set.
        expression: a split, or an expression of TFDS such as "train[:90%]" or "train+validation".

    Raises:
        TfdsError: there is no such split, or its files were not found or hold another number of
            records.
        record_files.RecordFileError: a record file is damaged.
    """
    file_format = builder.info.file_format.value
    if file_format not in FORMATS:
        raise TfdsError(
            f"{builder.data_path} is prepared as {file_format}; the formats that can be read are "
            f"{' and '.join(FORMATS)}"
        )
    try:
        instructions = builder.info.splits[expression].file_instructions
    except Exception as error:  # TFDS's parser raises errors of many types
        raise TfdsError(
            f"{builder.info.full_name} has no split {expression!r}; its splits are "
            f"{', '.join(builder.info.splits) or 'none'} (--test_fraction=0.2 sets a fifth of the "
            "train split aside as test)"
        ) from error
    if not instructions:
        raise TfdsError(f"{builder.info.full_name}: the split {expression!r} has no examples")
    size_of = {os.fspath(part.filename): part.examples_in_shard for part in instructions}
    files = list(size_of)
    if missing := [path for path in files if not os.path.exists(path)]:
        raise TfdsError(
            f"{builder.info.full_name}, {expression}: {len(missing)} of {len(files)} record files "
            f"were not found: {first_few(missing)}"
        )
    records = record_files.RecordFiles(files, file_format)
    if len(records) != sum(size_of.values()):
        raise TfdsError(
            f"{builder.data_path}: the files of {expression} hold {len(records)} records, but "
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
        read=records.read,
    )


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names and labels of the examples of a split, in the order of the records.

    Attributes:
        names: the names of the N examples.
        codes: the labels of all examples, one after the other, as classes or as texts.
        num_codes: the number of labels of each example, int64 (N,).
    """

    names: np.ndarray
    codes: np.ndarray
    num_codes: np.ndarray

    def labels(self, num_classes: int, source: str) -> scipy.sparse.csr_array:
        """Returns the labels, multi-hot bool (N, C), CSR.

        Args:
            num_classes: the number C of classes.
            source: the name of the origin of the labels in messages.

        Raises:
            TfdsError: a code is not a class.
        """
        wrong = np.flatnonzero((self.codes < 0) | (self.codes >= num_classes))
        if wrong.size:
            rows = np.repeat(np.arange(len(self.num_codes)), self.num_codes)[wrong]
            raise TfdsError(
                f"{source}: {len(np.unique(rows))} examples hold something other than classes 0 to "
                f"{num_classes - 1}, or zeros and ones; the first is example {rows[0]}. Splits "
                "without annotations often have such values"
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
    """Reads names and labels in one pass over the records that decodes only these features.

    The result is remembered in `cache_dir` for as long as the record files stay the same.

    Args:
        split: the split to read.
        features: the features to decode, as `tfds.decode.PartialDecoding` takes them.
        parse: a function from a decoded example to its name, string (), and its labels, of rank 1.
            It runs inside `tf.data`.
        key: a name for what `parse` does.
        cache_dir: the folder where the result is remembered.

    Raises:
        TfdsError: a record cannot be read.
    """
    info = split.builder.info
    cached_file = _COLUMNS.path(cache_dir, [info.full_name, split.expression, key], split.files)
    cached = cache.load(cached_file, _load_columns)
    if cached is not None:
        return cached
    print(f"reading the labels of {len(split.positions):,} images of {split}")
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
    names, codes, num_codes = [], [], []
    try:
        with terminal.Counter("reading labels", len(split.positions), "images") as counter:
            for batch_names, batch_codes, batch_num_codes in batches:
                names += batch_names.numpy().tolist()
                flat = tf.reshape(getattr(batch_codes, "flat_values", batch_codes), [-1])
                codes += flat.numpy().tolist()
                num_codes += batch_num_codes.numpy().tolist()
                counter.show(len(names))
    except tf.errors.OpError as error:
        raise TfdsError(f"{split}: a record cannot be read: {images.reason_of(error)}") from error
    columns = Columns(_array(names), _array(codes), np.array(num_codes))
    with cache.writing(cached_file) as file:
        np.savez(file, **vars(columns))
    return columns


def _load_columns(file: BinaryIO) -> Columns:
    with np.load(file, allow_pickle=False) as content:
        return Columns(content["names"], content["codes"], content["num_codes"])


def record_examples(
    split: Split, *, names: Sequence[str], labels: scipy.sparse.csr_array, image_feature: str
) -> Examples:
    """Makes examples whose images are read from the records by position, as encoded bytes."""
    image_only = tfds.decode.PartialDecoding({image_feature: True})
    features = image_only.extract_features(split.builder.info.features)
    decoders = {image_feature: tfds.decode.SkipDecoding()}
    with tf.device("CPU"):
        table = tf.constant(split.positions)

    def read(position: tf.Tensor) -> tf.Tensor:
        example = features.deserialize_example(split.read(table[position]), decoders=decoders)
        return example[image_feature]

    return Examples(names=names, labels=labels, read=read, files=split.file_of_example)


@dataclasses.dataclass(frozen=True)
class _LabelForm:
    """The form of labels in a feature; `codes` maps its tensor to classes or texts of rank 1."""

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
        f"{builder.info.full_name} has no feature {label_feature!r} with several labels per image. "
        f"These features can be used: {', '.join(forms) or 'none'}. All features: "
        f"{', '.join(_feature_names(builder.info.features))}"
    )


def _label_forms(feature: Any, path: tuple[str, ...], *, in_list: bool) -> Iterator[_LabelForm]:
    """Yields the features that can serve as labels, at any depth but in one sequence at most."""
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
    """Returns whether a sequence is a tensor of fixed length under another name."""
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
    if image_feature is not None and image_feature in found:
        return image_feature
    asked = "exactly one image" if image_feature is None else f"an image {image_feature!r}"
    raise TfdsError(
        f"{builder.info.full_name} does not have {asked} of 8 or 16 bits; its images are: "
        f"{', '.join(found) or 'none'}. All features: "
        f"{', '.join(_feature_names(builder.info.features))}. Choose one with --image_feature"
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
    """Returns the builder, of the newest prepared version if the current one is not prepared."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, **options)
    except Exception as error:  # the parser, the registry and the data set raise many types
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
    """Returns an array of integers or of decoded texts; without values, of integers."""
    texts = [value.decode() for value in values if isinstance(value, bytes)]
    return np.array(texts) if texts else np.array(values, np.int64)
