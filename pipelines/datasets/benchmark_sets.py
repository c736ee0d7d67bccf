"""The common part of VOC-MLT and COCO-MLT: finding the original data and choosing train.

Reference: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets, ECCV 2020, section 4.1.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.sparse
from absl import logging

from dbl_tf.messages import first_few
from pipelines import locations, longtail
from pipelines.datasets import assembly, image_ids, tfds_source
from pipelines.datasets.options import BenchmarkOptions
from pipelines.datasets.source import LoadOptions
from pipelines.examples import Examples, LabelledData


class BenchmarkError(ValueError):
    """The original data of a benchmark were not found or cannot be used."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A published long-tailed data set, and the full data set from which it is chosen.

    Attributes:
        name: its name for `--dataset`.
        class_names: the C class names, in the order of the label columns.
        max_count: the maximum count of the Pareto construction.
        folder: the name of the folder of the original data.
        pieces: for "train" and "test", the paths below the folder that the split needs.
        read_folder: a function that reads names, image paths and labels of a split from the folder.
        tfds_splits: for "train" and "test", the data set of TFDS and its split expression.
        read_tfds: a function that reads names and labels of a split of TFDS.
        id_of: a function that returns the id in the name of an image or in a line of a list, or
            None if there is no id.
    """

    name: str
    class_names: tuple[str, ...]
    max_count: int
    folder: str
    pieces: Mapping[str, Sequence[str]]
    read_folder: Callable[[str, str], tuple[list[str], list[str], scipy.sparse.csr_array]]
    tfds_splits: Mapping[str, tuple[str, str]]
    read_tfds: Callable[[tfds_source.Split, str | os.PathLike], tfds_source.Columns]
    id_of: Callable[[str], str | None]


def load(
    benchmark: Benchmark,
    options: BenchmarkOptions,
    load_options: LoadOptions,
    splits: Sequence[str] | None = None,
) -> LabelledData:
    """Loads a benchmark from the original folders or, without them, from TensorFlow Datasets.

    Each split is looked up separately, in the folder of the original data and then among the
    prepared data of TFDS. The examples are in the order of their names, so that both give the same
    data. Without `options.image_ids`, the train split is drawn by `longtail.pareto_subset`; it
    resembles the published one but is not equal to it.

    Args:
        benchmark: the benchmark to load.
        options: the options of the benchmark, such as the folder of the data.
        load_options: the options that all sources have, such as the seed of the draw.
        splits: the splits to load, of "train" and "test"; None for both.

    Raises:
        ValueError: the data were not found or cannot be used; the message names the files.
    """
    load_options.check_no_test(benchmark.name)
    data_dir, cache_dir = options.data_dir, load_options.cache_path
    if data_dir is not None:
        locations.check_schemes([data_dir], "data_dir")
        data_dir = locations.absolute(data_dir)
        if not options.download and not locations.is_folder(data_dir):
            raise BenchmarkError(f"data_dir must be a folder; found no folder at {data_dir}")
    names = tuple(splits or ("train", "test"))
    wanted = None
    if options.image_ids is not None and "train" in names:
        wanted = image_ids.read(options.image_ids, benchmark.id_of)
    loaded, sources = {}, []
    for split in names:
        if split not in benchmark.pieces:
            raise BenchmarkError(
                f"{benchmark.name} has train and test but no {split}; --val_fraction sets "
                "a share of train aside as val"
            )
        examples, source, in_records = _read(
            benchmark, split, data_dir, options.download, cache_dir
        )
        sources.append(source)
        if split == "train":
            if wanted is None or options.image_ids is None:
                chosen = draw_train(benchmark, examples.labels, seed=load_options.data_seed)
            else:
                ids = [benchmark.id_of(name) for name in examples.names]
                chosen = image_ids.positions(wanted, ids, path=options.image_ids)
            examples = examples.take(chosen)
        loaded[split] = assembly.without_bad_images(
            examples,
            source=source,
            in_records=in_records,
            check_images=load_options.check_images,
            skip_bad_images=load_options.skip_bad_images,
            cache_dir=cache_dir,
        )
        logging.info(
            "%s: %s %s images from %s, %s of them without labels",
            benchmark.name,
            f"{len(loaded[split]):,}",
            split,
            source,
            f"{loaded[split].num_unlabeled:,}",
        )
    origin = f"{benchmark.name} from {' and '.join(dict.fromkeys(sources))}"
    return LabelledData(class_names=benchmark.class_names, splits=loaded, origin=origin)


def draw_train(benchmark: Benchmark, labels: scipy.sparse.csr_array, *, seed: int) -> np.ndarray:
    """Draws a train set by the Pareto construction, for use without the published list.

    Images without labels are never drawn, because the construction draws from the examples of each
    class.

    Args:
        benchmark: the benchmark, whose maximum count applies.
        labels: the labels of the full data, multi-hot (N, C).
        seed: the seed of the draw.

    Returns:
        The positions of the train set, int64 (M,), rising.
    """
    logging.info(
        "%s: there is no list of image ids, so the train set is drawn from %s images (the %s "
        "without labels are never drawn); it resembles the published one but is not equal to it",
        benchmark.name,
        f"{labels.shape[0]:,}",
        f"{np.count_nonzero(np.diff(labels.indptr) == 0):,}",
    )
    return longtail.pareto_subset(labels, max_count=benchmark.max_count, seed=seed)


def _read(
    benchmark: Benchmark,
    split: str,
    data_dir: str | os.PathLike | None,
    download: bool,
    cache_dir: str | os.PathLike,
) -> tuple[Examples, str, bool]:
    """Returns the full split sorted by names, its origin, and whether it is in record files."""
    root = _folder(benchmark, split, data_dir)
    if root is not None:
        names, paths, labels = benchmark.read_folder(root, split)
        return _by_name(assembly.file_examples(names, paths, labels)), root, False

    tfds_name, expression = benchmark.tfds_splits[split]
    prepared, folder = tfds_source.is_prepared(tfds_name, data_dir)
    if not prepared and not download:
        folders = "the original folders nowhere, because --data_dir is not given"
        if data_dir is not None:
            folders = (
                f"the original folders {', '.join(benchmark.pieces[split])} in "
                f"{' and in '.join(_roots(benchmark, data_dir))}"
            )
        raise BenchmarkError(
            f"{benchmark.name}: the {split} images were not found. Looked for\n"
            f"  {folders};\n"
            f"  {tfds_name} of TensorFlow Datasets, prepared, in {folder}.\n"
            f"Either unpack the original archives and give their folder {benchmark.folder}, or the "
            "one above it, as --data_dir; or give --download, and TensorFlow Datasets downloads "
            "and prepares them there."
        )
    builder = tfds_source.open_builder(tfds_name, data_dir=data_dir, download=download)
    records = tfds_source.open_split(builder, expression)
    columns = benchmark.read_tfds(records, cache_dir)
    examples = tfds_source.record_examples(
        records,
        names=columns.names.tolist(),
        labels=columns.labels(len(benchmark.class_names), str(records)),
        image_feature="image",
    )
    return _by_name(examples), str(records), True


def _by_name(examples: Examples) -> Examples:
    """Sorts the examples by names, so that a seed draws the same ones from every source."""
    order = np.argsort(np.array(examples.names))
    examples = examples.take(order)
    repeated = [a for a, b in zip(examples.names, examples.names[1:], strict=False) if a == b]
    if repeated:
        raise BenchmarkError(f"{len(repeated)} images are in the data twice: {first_few(repeated)}")
    return examples


def _roots(benchmark: Benchmark, data_dir: str | os.PathLike) -> list[str]:
    return [os.path.join(data_dir, benchmark.folder), os.fspath(data_dir)]


def _folder(benchmark: Benchmark, split: str, data_dir: str | os.PathLike | None) -> str | None:
    """Returns the folder of the original data, None if it has nothing that the split needs."""
    if data_dir is None:
        return None
    for root in _roots(benchmark, data_dir):
        absent = [
            piece
            for piece in benchmark.pieces[split]
            if not os.path.exists(os.path.join(root, piece))
        ]
        if not absent:
            return root
        if len(absent) < len(benchmark.pieces[split]):
            present = [piece for piece in benchmark.pieces[split] if piece not in absent]
            raise BenchmarkError(
                f"{root} is not complete: for {split} it has {', '.join(present)} but no "
                f"{', '.join(absent)}"
            )
    return None
