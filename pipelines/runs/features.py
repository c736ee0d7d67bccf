"""Pooled features of a backbone that does not train: computed once, and kept for other runs."""

import hashlib
import os

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import atomic, prediction
from pipelines.examples import Examples
from pipelines.runs import evaluate
from pipelines.runs.config import ResolvedConfig


class Features:
    """Features of splits, kept in the cache folder under a digest of backbone and images.

    So runs which differ above the backbone share them.

    Args:
        config: of the run.
        backbone: from images to features.
    """

    def __init__(self, config: ResolvedConfig, backbone: keras.Model):
        self.config, self.backbone = config, backbone
        network = (config.backbone, dict(config.backbone_options), config.image_size)
        digest = hashlib.sha256(repr(network).encode())
        for weight in backbone.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        data = (config.dataset, config.loading.data_seed, config.source)
        digest.update(repr(data).encode())
        self._digest = digest

    def __call__(self, examples: Examples) -> np.ndarray:
        """float32 (N, F), of the examples in their order."""
        digest = self._digest.copy()
        digest.update("\n".join(examples.names).encode())
        for path in dict.fromkeys(examples.files or ()):  # a file may hold many images
            status = os.stat(path)
            digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode())
        path = self.config.loading.cache_path / "features" / f"{digest.hexdigest()[:32]}.npy"
        if path.exists():
            return np.load(path)
        print(f"computing features of {len(examples)} images")
        size = self.config.image_size
        with evaluate.reraise_unreadable(examples, lambda: evaluate.every_position(examples), size):
            features = prediction.predict_logits(
                self.backbone, evaluate.image_batches(examples, size)
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as tmp_path:
            np.save(tmp_path, features)
        return features

    def batches(self, examples: Examples) -> tf.data.Dataset:
        """The features in batches, in the order of the examples."""
        return tf.data.Dataset.from_tensor_slices(self(examples)).batch(evaluate.BATCH_SIZE)
