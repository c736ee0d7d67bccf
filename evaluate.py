"""Scores a trained run or an exported model, or predicts a folder of images.

    python evaluate.py --run_dir=runs/digits_mlt-db_focal
    python evaluate.py --saved_model=DIR/saved_model/1 --dataset=table --examples=FILE.csv \
        --output_dir=scores
    python evaluate.py --saved_model=DIR/saved_model/1 --images=FOLDER --output_dir=predictions
"""

from absl import app, flags

from dbl_tf import evaluation
from pipelines import config, datasets, evaluation_run
from pipelines.datasets import image_files

DataConfig = config.DataConfig

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run, scored on its own test split.")
_SAVED_MODEL = flags.DEFINE_string("saved_model", None, "An exported model's version directory.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of unlabelled images to predict.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "For what is written.")
_DATASET = flags.DEFINE_enum("dataset", DataConfig.dataset, datasets.NAMES, "Data to score on.")
_EXAMPLES = flags.DEFINE_string(
    "examples", None, "table: CSV or JSON lines of image, split, labels."
)
_IMAGES_DIR = flags.DEFINE_string("images_dir", None, "table: where relative image paths start.")
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "table: text file, a class on each line.")
_LABEL_SEPARATOR = flags.DEFINE_string("label_separator", None, "table: what parts the labels.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "voc_mlt, coco_mlt, tfds: where the data lie.")
_DOWNLOAD = flags.DEFINE_bool("download", DataConfig.download, "Let TensorFlow Datasets download.")
_TFDS_NAME = flags.DEFINE_string("tfds_name", None, "tfds: name of the data set.")
_LABEL_FEATURE = flags.DEFINE_string("label_feature", None, "tfds: its feature with labels.")
_IMAGE_FEATURE = flags.DEFINE_string("image_feature", None, "tfds: its feature with the image.")
_TEST_SPLIT = flags.DEFINE_string("test_split", DataConfig.test_split, "tfds: what to test on.")
_SHARDS_DIR = flags.DEFINE_string("shards_dir", None, "shards: folder of pipelines.write_shards.")
_CHECK_IMAGES = flags.DEFINE_enum(
    "check_images", DataConfig.check_images, image_files.LEVELS, "How images are checked first."
)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images", DataConfig.skip_bad_images, "Drop and count images that fail the check."
)
_DATA_SEED = flags.DEFINE_integer("data_seed", DataConfig.data_seed, "Of data that are made.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Of results that runs share; ~/.cache/dbl_tf.")

_DATA_FLAGS = (
    _DATASET,
    _EXAMPLES,
    _IMAGES_DIR,
    _CLASS_NAMES,
    _LABEL_SEPARATOR,
    _DATA_DIR,
    _DOWNLOAD,
    _TFDS_NAME,
    _LABEL_FEATURE,
    _IMAGE_FEATURE,
    _TEST_SPLIT,
    _SHARDS_DIR,
    _CHECK_IMAGES,
    _SKIP_BAD_IMAGES,
    _DATA_SEED,
)


def main(argv: list[str]) -> None:
    """Runs the evaluation that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if (_RUN_DIR.value is None) == (_SAVED_MODEL.value is None):
        raise app.UsageError("one of --run_dir and --saved_model says what is evaluated")
    if _SAVED_MODEL.value is not None and _OUTPUT_DIR.value is None:
        raise app.UsageError("--saved_model needs --output_dir, for what is written")
    if _IMAGES.value is not None and _SAVED_MODEL.value is None:
        raise app.UsageError("--images goes with --saved_model")
    if _RUN_DIR.value is not None or _IMAGES.value is not None:
        given = [flag.name for flag in _DATA_FLAGS if flag.present]
        if given:
            raise app.UsageError(f"--{given[0]} goes with --saved_model and labelled images")
    try:
        if _RUN_DIR.value is not None:
            scores = evaluation_run.evaluate_run(_RUN_DIR.value, _OUTPUT_DIR.value)
        elif _IMAGES.value is not None:
            model = evaluation_run.SavedModel(_SAVED_MODEL.value)
            print(evaluation_run.predict_folder(model, _IMAGES.value, _OUTPUT_DIR.value))
            return
        else:
            data = DataConfig(
                dataset=_DATASET.value,
                examples=_EXAMPLES.value,
                images_dir=_IMAGES_DIR.value,
                class_names=_CLASS_NAMES.value,
                label_separator=_LABEL_SEPARATOR.value,
                data_dir=_DATA_DIR.value,
                download=_DOWNLOAD.value,
                tfds_name=_TFDS_NAME.value,
                label_feature=_LABEL_FEATURE.value,
                image_feature=_IMAGE_FEATURE.value,
                test_split=_TEST_SPLIT.value,
                shards_dir=_SHARDS_DIR.value,
                check_images=_CHECK_IMAGES.value,
                skip_bad_images=_SKIP_BAD_IMAGES.value,
                data_seed=_DATA_SEED.value,
                cache_dir=_CACHE_DIR.value,
            )
            scores = evaluation_run.evaluate_saved_model(
                _SAVED_MODEL.value, data, _OUTPUT_DIR.value
            )
    except (ValueError, FloatingPointError, OSError) as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    print(evaluation.format_table(scores))


if __name__ == "__main__":
    app.run(main)
