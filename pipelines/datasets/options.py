"""The registry of data sources, and the options of each, from which the commands make their flags.

The sources themselves are imported when data are loaded, so that flags need no TensorFlow.
"""

import dataclasses
import os

from dbl_tf.names import NO_BACKBONE, SMALL_RESNET
from dbl_tf.settings import REQUIRED, setting
from pipelines import locations
from pipelines.datasets.source import (
    BENCHMARKS,
    PHOTOGRAPHS,
    Defaults,
    Source,
    SourceOptions,
)
from pipelines.tables.columns import ColumnFlags

# What an empty cell of a class says.
ABSENT, UNKNOWN = "absent", "unknown"
# The side of the scenes of digits, in pixels.
DIGITS_SIZE = 32
FEATURES_SUFFIX = ".npz"
# The arrays of a file of features.
FEATURES_ARRAYS = ("features", "labels", "split", "class_names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsOptions(SourceOptions):
    """This data set has no options of its own; another `data_seed` composes other scenes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions(SourceOptions):
    """Options of a table of examples.

    Raises:
        ValueError: the separator is empty.
    """

    examples: str = setting(
        REQUIRED,
        "Table of images, splits and labels: CSV, JSON, COCO, or a folder of tables or of folders; "
        "for features also an .npz file with the arrays features, labels, split and class_names.",
        is_path=True,
        required_as="a CSV or JSON file, a folder, or an .npz file of features",
    )
    images_dir: str | None = setting(
        None,
        "Folder that relative image paths start from. The default is the folder of --examples.",
        is_path=True,
    )
    class_names: str | None = setting(
        None,
        "Text file with one class per line, which sets the order of the classes and the labels "
        "allowed. By default, the classes are the labels found, sorted.",
        is_path=True,
    )
    label_separator: str | None = setting(
        None,
        r"Separator of labels, such as , or \t; none if each cell is one label. The default is | "
        "if the labels contain one, otherwise what the cells show.",
    )
    image_column: str | None = setting(
        None, "Column of the images. By default, it is recognized by its name and cells."
    )
    labels_column: str | None = setting(
        None,
        "Column of the labels; or columns of zeros and ones for the classes, separated by commas, "
        "where FIRST..LAST names all from one to another. By default, they are recognized.",
    )
    split_column: str | None = setting(
        None,
        "Column of the splits: train, val or test, or true and false in is_valid or is_test. By "
        "default, it is recognized.",
    )

    empty_labels: str = setting(
        ABSENT,
        "What an empty cell of a class says in a table with a column for each class: that the "
        "image does not have the label (absent), or that it is not known (unknown), as -1 does.",
        choices=(ABSENT, UNKNOWN),
    )

    def __post_init__(self) -> None:
        if self.label_separator == "":
            raise ValueError("label_separator must not be empty")

    @property
    def data_name(self) -> str:
        """The name of the table's folder."""
        path = locations.absolute(self.examples)
        return os.path.basename(path if os.path.isdir(path) else os.path.dirname(path))

    @property
    def column_flags(self) -> ColumnFlags:
        """The columns that the options name."""
        return ColumnFlags(self.image_column, self.labels_column, self.split_column)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesOptions(TableOptions):
    """Options of features.

    Raises:
        ValueError: the options of a table go with an `.npz` file, or those of images with features.
    """

    features: str | None = setting(
        None,
        "File of features, .npy (N, F), with a row for each row of the table of --examples. It is "
        "memory-mapped. An .npz file of --examples holds the features itself.",
        is_path=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        of_table = (
            *("class_names", "label_separator", "features"),
            *("image_column", "labels_column", "split_column"),
        )
        if self.is_archive:
            for name in of_table:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} goes with a table, and {self.examples} holds arrays")
        elif self.features is None:
            raise ValueError(
                f"features must name the .npy file of the rows of {self.examples}; or examples "
                f"must be an {FEATURES_SUFFIX} file with the arrays {', '.join(FEATURES_ARRAYS)}"
            )
        if self.images_dir is not None:
            raise ValueError("images_dir goes with images; these examples are features")
        if self.is_archive and self.empty_labels != ABSENT:
            raise ValueError(f"empty_labels goes with a table, and {self.examples} holds arrays")

    @property
    def is_archive(self) -> bool:
        """Whether `examples` is an archive of arrays and not a table."""
        return self.examples.lower().endswith(FEATURES_SUFFIX)

    @property
    def data_name(self) -> str:
        """The name of the file of examples, without its suffix."""
        return os.path.splitext(os.path.basename(self.examples))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedDataOptions(SourceOptions):
    """Options for finding data of TensorFlow Datasets or the original folders of a benchmark."""

    data_dir: str | None = setting(
        None,
        "Folder of TensorFlow Datasets, or the folder that holds VOCdevkit or coco. The default is "
        "that of TensorFlow Datasets.",
        is_path=True,
    )
    download: bool = setting(
        False,
        "Let TensorFlow Datasets download data that were not found.",
        affects_result=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsOptions(PreparedDataOptions):
    """Options of any data set of TensorFlow Datasets.

    Attributes:
        tfds_name: the name that `tfds.builder` takes, such as "voc/2007" or "my_set/config:1.0.0".
        label_feature: a sequence of class labels or of texts, or a tensor of C zeros and ones.
            Slashes lead to a feature within others, as in "objects/label". Class labels have names
            and an order; texts are sorted; the classes of a tensor are called 0 to C − 1.
        train_split: a split, or an expression of TFDS such as "train[:90%]" or
            "train+validation".
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(PreparedDataOptions):
    """Options of the two benchmarks."""

    image_ids: str | None = setting(
        None,
        "Text file with the ids of the training images, one per line. By default, a new training "
        "split is drawn.",
        is_path=True,
        for_training=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardsOptions(SourceOptions):
    """Options of shards."""

    shards_dir: str = setting(
        REQUIRED,
        "Folder that python -m pipelines.write_shards wrote.",
        is_path=True,
        required_as="a folder that python -m pipelines.write_shards wrote",
    )

    @property
    def data_name(self) -> str:
        """The name of the folder."""
        return os.path.basename(os.path.abspath(self.shards_dir))


SOURCES: dict[str, Source] = {
    "digits_mlt": Source(
        options=DigitsOptions,
        # The images are small, so the network is small and not pre-trained.
        defaults=Defaults(
            backbone=SMALL_RESNET,
            backbone_weights="none",
            image_size=DIGITS_SIZE,
            steps=1500,
        ),
        module="digits_mlt",
    ),
    "table": Source(options=TableOptions, defaults=PHOTOGRAPHS, module="table"),
    "features": Source(
        options=FeaturesOptions,
        defaults=Defaults(
            backbone=NO_BACKBONE, backbone_weights="none", image_size=None, freeze_backbone=True
        ),
        module="features",
    ),
    "voc_mlt": Source(options=BenchmarkOptions, defaults=BENCHMARKS, module="voc_mlt"),
    "coco_mlt": Source(options=BenchmarkOptions, defaults=BENCHMARKS, module="coco_mlt"),
    "tfds": Source(options=TfdsOptions, defaults=PHOTOGRAPHS, module="tfds_source"),
    "shards": Source(options=ShardsOptions, defaults=PHOTOGRAPHS, module="shards"),
}
