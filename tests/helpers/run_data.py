"""Data of a given size, for what depends on nothing else of them."""

import numpy as np
import scipy.sparse

from pipelines.examples import Examples, FeatureRows, LabelledData


def make_data(num_classes=20, num_examples=100, splits=("train", "test"), num_features=None):
    """Examples whose labels are those of their position, modulo C; never read."""
    labels = np.eye(num_classes, dtype=bool)[np.arange(num_examples) % num_classes]
    features = None
    if num_features is not None:
        features = FeatureRows.of(np.zeros((num_examples, num_features), np.float32))

    def examples(split):
        return Examples(
            names=[f"{split} {i}" for i in range(num_examples)],
            labels=scipy.sparse.csr_array(labels),
            read=lambda position: None,
            features=features,
        )

    names = tuple(f"class {i}" for i in range(num_classes))
    return LabelledData(class_names=names, splits={split: examples(split) for split in splits})
