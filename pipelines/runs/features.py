"""Pooled features of a frozen backbone, which are computed once and cached for other runs."""

import os
from collections.abc import Iterator
from typing import BinaryIO

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import atomic, names, prediction
from dbl_tf.statistics import LabelStatistics
from pipelines import cache
from pipelines.examples import Examples, FeatureRows, LabelledData
from pipelines.images import EVALUATION_VERSION
from pipelines.runs import build
from pipelines.runs.config import ConfigError, ResolvedConfig
from pipelines.runs.network_inputs import ImageInputs

_FEATURES = cache.Kind("features", version=EVALUATION_VERSION, suffix=".npy")


class Features:
    """Computes the features of splits, and caches them under a digest of all that they depend on.

    Runs that differ only above the backbone share them. They depend on the images and on how they
    are read, the network and its weights, and on the versions of TensorFlow, whose decoders read
    the images, and of Keras, which defines the network and its preprocessing.

    Args:
        config: the configuration of the run.
        backbone: the network from images to features.
    """

    def __init__(self, config: ResolvedConfig, backbone: keras.Model):
        self.config, self.backbone = config, backbone
        self._parts: list[str | bytes] = [*self._describe(), *_weights(backbone)]

    def __call__(self, examples: Examples) -> FeatureRows:
        """Returns the features of the examples in their order, float32 (N, F).

        Those of a part of examples are taken from the features of the whole.
        """
        if examples.whole is not None:
            whole, positions = examples.whole
            return self(whole).take(positions)
        path = _FEATURES.path(
            self.config.loading.cache_path, [*self._parts, *examples.names], examples.files
        )
        features = cache.load(path, lambda file: _read(file, len(examples)))
        if features is not None:
            return FeatureRows.of(features)
        print(f"computing features of {len(examples):,} images")
        images = ImageInputs(self.backbone.input_shape[1], self.config.full_decoding)
        with images.naming_unreadable(examples):
            features = prediction.predict_logits(self.backbone, images.batches(examples))
        with cache.writing(path) as file:
            np.save(file, features)
        return FeatureRows.of(features)

    def _describe(self) -> Iterator[str]:
        config = self.config
        yield f"tensorflow {tf.__version__}, keras {keras.__version__}"
        yield repr((config.backbone, dict(config.backbone_options), config.image_size))
        if names.is_hub(config.backbone):
            # Its preprocessing is that of the preset, which is not among the weights.
            yield repr(self.backbone.get_layer("preprocessing").get_config())
        if not config.full_decoding:
            yield "scaled decoding"
        # Nothing else identifies data that are not read from files.
        yield repr((config.dataset, config.loading.data_seed, config.source))


def write(config: ResolvedConfig, data: LabelledData, path: str | os.PathLike) -> tuple[int, int]:
    """Writes the features, labels, splits and class names of data as `--dataset=features` reads.

    Returns:
        The shape (N, F) of the features, over all splits.

    Raises:
        ConfigError: the data are features already, or the network is not trained.
    """
    train = data.splits["train"]
    if train.features is not None:
        raise ConfigError("the data are features already")
    if not config.has_trained_backbone:
        raise ConfigError(
            f"{config.backbone} starts from random weights; pass --init_from=RUN_DIR or "
            "--backbone_weights=FILE"
        )
    statistics = LabelStatistics.from_labels(train.targets, data.class_names)
    backbone, _ = build.build_networks(config, statistics)
    assert backbone is not None
    features_of = Features(config, backbone)
    parts = data.splits.values()
    features = np.concatenate([features_of(part)[:] for part in parts])
    with atomic.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            features=features,
            labels=np.concatenate([part.targets.toarray() for part in parts]),
            split=np.repeat(list(data.splits), [len(part) for part in parts]),
            class_names=np.array(data.class_names),
            names=np.array([name for part in parts for name in part.names]),
        )
    return features.shape


def _read(file: BinaryIO, num_examples: int) -> np.ndarray:
    """Reads cached features.

    Raises:
        ValueError: the file holds something else.
    """
    features = np.load(file, allow_pickle=False)
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != num_examples:
        raise ValueError(
            f"it holds {features.dtype} of shape {features.shape}, not float32 of {num_examples} "
            "examples"
        )
    if not np.isfinite(features).all():
        raise ValueError("it holds values that are not finite")
    return features


def _weights(network: keras.Model) -> Iterator[bytes]:
    for weight in network.get_weights():
        yield np.ascontiguousarray(weight).tobytes()
