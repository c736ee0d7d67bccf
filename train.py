"""Trains, evaluates and exports a classifier of long-tailed, multi-label images.

python train.py
python train.py --dataset=table --examples=my_pictures/examples.csv --method=db_focal
"""

from absl import app, flags

from dbl_tf import evaluation, losses, methods, models, training
from pipelines import config, datasets, sampling, training_run
from pipelines.datasets import image_files

RunConfig = config.RunConfig

_DATASET = flags.DEFINE_enum(
    "dataset", RunConfig.dataset, datasets.NAMES, "Where images come from."
)
_EXAMPLES = flags.DEFINE_string(
    "examples", None, "table: CSV or JSON lines of image, split, labels."
)
_IMAGES_DIR = flags.DEFINE_string("images_dir", None, "table: where relative image paths start.")
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "table: text file, a class on each line.")
_LABEL_SEPARATOR = flags.DEFINE_string("label_separator", None, "table: what parts the labels.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "voc_mlt, coco_mlt, tfds: where the data lie.")
_IMAGE_IDS = flags.DEFINE_string("image_ids", None, "voc_mlt, coco_mlt: list of training images.")
_DOWNLOAD = flags.DEFINE_bool("download", RunConfig.download, "Let TensorFlow Datasets download.")
_TFDS_NAME = flags.DEFINE_string("tfds_name", None, "tfds: name of the data set.")
_LABEL_FEATURE = flags.DEFINE_string("label_feature", None, "tfds: its feature with labels.")
_IMAGE_FEATURE = flags.DEFINE_string("image_feature", None, "tfds: its feature with the image.")
_TRAIN_SPLIT = flags.DEFINE_string("train_split", RunConfig.train_split, "tfds: what to train on.")
_VAL_SPLIT = flags.DEFINE_string("val_split", None, "tfds: what to validate on.")
_TEST_SPLIT = flags.DEFINE_string("test_split", RunConfig.test_split, "tfds: what to test on.")
_SHARDS_DIR = flags.DEFINE_string("shards_dir", None, "shards: folder of pipelines.write_shards.")
_CHECK_IMAGES = flags.DEFINE_enum(
    "check_images", RunConfig.check_images, image_files.LEVELS, "How images are checked first."
)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images", RunConfig.skip_bad_images, "Drop and count images that fail the check."
)
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction", RunConfig.val_fraction, "Share of the training images set aside as val."
)
_DATA_SEED = flags.DEFINE_integer("data_seed", RunConfig.data_seed, "Of data made or split.")
_ALLOW_EMPTY_CLASSES = flags.DEFINE_bool(
    "allow_empty_classes", RunConfig.allow_empty_classes, "Accept classes without training images."
)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Of results that runs share; ~/.cache/dbl_tf.")

_METHOD = flags.DEFINE_enum(
    "method", RunConfig.method, list(methods.METHODS), f"What is trained:\n{methods.describe()}"
)
_SAMPLER = flags.DEFINE_enum("sampler", None, list(sampling.SAMPLERS), "Instead of the method's.")
_ALPHA = flags.DEFINE_float("alpha", RunConfig.alpha, "α of Eq. 4, a lift of all weights.")
_BETA = flags.DEFINE_float("beta", RunConfig.beta, "β of Eq. 4, the slope of the weights.")
_MU = flags.DEFINE_float("mu", RunConfig.mu, "μ of Eq. 4, where the weights are half way.")
_LAMBDA = flags.DEFINE_float("lambda", RunConfig.lambda_, "λ of Eq. 7, tolerance of negatives.")
_KAPPA = flags.DEFINE_float("kappa", RunConfig.kappa, "κ of Eq. 9, the scale of the margins.")
_MARGIN = flags.DEFINE_enum("margin", RunConfig.margin, losses.MARGINS, "ν as printed, or ν/λ.")
_REBALANCE_IN = flags.DEFINE_enum(
    "rebalance_in", RunConfig.rebalance_in, config.REBALANCE_PLACES, "Where r̂ is computed."
)

_BACKBONE = flags.DEFINE_enum("backbone", None, models.backbone_names(), "The network below.")
_BACKBONE_OPTIONS = flags.DEFINE_string("backbone_options", "", "Its arguments, name=value,….")
_BACKBONE_WEIGHTS = flags.DEFINE_string("backbone_weights", None, "imagenet, none, or a file.")
_FROZEN_LAYERS = flags.DEFINE_list("frozen_layers", None, "Prefixes of its layers left untrained.")
_FREEZE_BACKBONE = flags.DEFINE_bool(
    "freeze_backbone", RunConfig.freeze_backbone, "Train only the layers above it, on its features."
)
_INIT_FROM = flags.DEFINE_string("init_from", None, "Run directory or .keras file to start from.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the images that the network sees.")
_FLIP_PROBABILITY = flags.DEFINE_float("flip_probability", None, "Of mirroring a training image.")

_BATCH_SIZE = flags.DEFINE_integer("batch_size", RunConfig.batch_size, "Over all replicas.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "To train; the method's own unless given.")
_STEPS = flags.DEFINE_integer("steps", None, "To train, instead of epochs.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "After warm-up.")
_WARMUP_STEPS = flags.DEFINE_integer("warmup_steps", None, "Of the learning rate.")
_MOMENTUM = flags.DEFINE_float("momentum", RunConfig.momentum, "Of SGD.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", RunConfig.weight_decay, "Coupled.")
_SEED = flags.DEFINE_integer("seed", RunConfig.seed, "Of weights, sampling and augmentation.")
_PRECISION = flags.DEFINE_enum(
    "precision", RunConfig.precision, config.PRECISIONS, "Of the network."
)
_STRATEGY = flags.DEFINE_enum("strategy", RunConfig.strategy, training.STRATEGIES, "Devices used.")
_CHECKPOINT_EVERY = flags.DEFINE_integer("checkpoint_every", None, "Steps; every epoch anyway.")
_RUN_DIR = flags.DEFINE_string("run_dir", None, "For all that is written; runs/DATASET-METHOD.")
_EXPORT = flags.DEFINE_bool("export", RunConfig.export, "Write a SavedModel.")


def main(argv: list[str]) -> None:
    """Runs the training that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        scores = training_run.train_and_evaluate(
            RunConfig(
                dataset=_DATASET.value,
                examples=_EXAMPLES.value,
                images_dir=_IMAGES_DIR.value,
                class_names=_CLASS_NAMES.value,
                label_separator=_LABEL_SEPARATOR.value,
                data_dir=_DATA_DIR.value,
                image_ids=_IMAGE_IDS.value,
                download=_DOWNLOAD.value,
                tfds_name=_TFDS_NAME.value,
                label_feature=_LABEL_FEATURE.value,
                image_feature=_IMAGE_FEATURE.value,
                train_split=_TRAIN_SPLIT.value,
                val_split=_VAL_SPLIT.value,
                test_split=_TEST_SPLIT.value,
                shards_dir=_SHARDS_DIR.value,
                check_images=_CHECK_IMAGES.value,
                skip_bad_images=_SKIP_BAD_IMAGES.value,
                val_fraction=_VAL_FRACTION.value,
                data_seed=_DATA_SEED.value,
                allow_empty_classes=_ALLOW_EMPTY_CLASSES.value,
                cache_dir=_CACHE_DIR.value,
                method=_METHOD.value,
                sampler=_SAMPLER.value,
                alpha=_ALPHA.value,
                beta=_BETA.value,
                mu=_MU.value,
                lambda_=_LAMBDA.value,
                kappa=_KAPPA.value,
                margin=_MARGIN.value,
                rebalance_in=_REBALANCE_IN.value,
                backbone=_BACKBONE.value,
                backbone_options=config.parse_options(_BACKBONE_OPTIONS.value),
                backbone_weights=_BACKBONE_WEIGHTS.value,
                frozen_layers=_FROZEN_LAYERS.value,
                freeze_backbone=_FREEZE_BACKBONE.value,
                init_from=_INIT_FROM.value,
                image_size=_IMAGE_SIZE.value,
                flip_probability=_FLIP_PROBABILITY.value,
                batch_size=_BATCH_SIZE.value,
                epochs=_EPOCHS.value,
                steps=_STEPS.value,
                learning_rate=_LEARNING_RATE.value,
                warmup_steps=_WARMUP_STEPS.value,
                momentum=_MOMENTUM.value,
                weight_decay=_WEIGHT_DECAY.value,
                seed=_SEED.value,
                precision=_PRECISION.value,
                strategy=_STRATEGY.value,
                checkpoint_every=_CHECKPOINT_EVERY.value,
                run_dir=_RUN_DIR.value,
                export=_EXPORT.value,
            )
        )
    except (ValueError, FloatingPointError, OSError, training.LostWorkerError) as error:
        raise SystemExit(f"train.py: {error}") from error
    if scores is not None:
        print(evaluation.format_table(scores))


if __name__ == "__main__":
    app.run(main)
