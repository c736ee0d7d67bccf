"""Pooled features of a frozen backbone, which are computed once and cached for other runs."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import prediction
from pipelines import cache
from pipelines.examples import Examples, FeatureRows
from pipelines.images import EVALUATION_VERSION
from pipelines.runs.config import ResolvedConfig
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
        """Returns the features of the examples in their order, float32 (N, F)."""
        path = _FEATURES.path(
            self.config.loading.cache_path, [*self._parts, *examples.names], examples.files
        )
        features = cache.load(path, np.load)
        if features is not None:
            return FeatureRows.of(features)
        print(f"computing features of {len(examples)} images")
        images = ImageInputs(self.backbone.input_shape[1])
        with images.naming_unreadable(examples):
            features = prediction.predict_logits(self.backbone, images.batches(examples))
        with cache.writing(path) as temporary:
            np.save(temporary, features)
        return FeatureRows.of(features)

    def _describe(self) -> Iterator[str]:
        config = self.config
        yield f"tensorflow {tf.__version__}, keras {keras.__version__}"
        yield repr((config.backbone, dict(config.backbone_options), config.image_size))
        # Nothing else identifies data that are not read from files.
        yield repr((config.dataset, config.loading.data_seed, config.source))


def _weights(network: keras.Model) -> Iterator[bytes]:
    for weight in network.get_weights():
        yield np.ascontiguousarray(weight).tobytes()
