"""Classifier layers of the compared methods: features (B, F) → logits (B, C).

A cosine classifier for LDAM, and ML-GCN's classifier over a graph of labels.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import initializers, layers, ops


@keras.saving.register_keras_serializable(package="dbl_tf")
class CosineClassifier(layers.Layer):
    """Logits `s cos θ` of the angle between features and class vectors, without a bias.

    Both are divided by their L2 norm. `dbl_tf.LDAMLoss` is made for it.

    Args:
        num_classes: C.
        scale: s > 0.
        kernel_initializer: of the class vectors, (F, C). By default normal with variance 1/F, so
            that they are about of unit length: the longer, the less a step turns them.
        dtype: float32 also where the network computes in half precision.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        features: (B, F). Features that are all zero have logits of zero.

    Raises:
        ValueError: a scale that is not positive, or no class.

    References: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss,
    NeurIPS 2019; Wang et al., NormFace, ACM Multimedia 2017.

    Example:

    >>> layer = CosineClassifier(2, kernel_initializer="ones")
    >>> layer(np.array([[3.0, 3.0], [0.0, -5.0]])).numpy().round().tolist()
    [[30.0, 30.0], [-21.0, -21.0]]
    """

    def __init__(
        self,
        num_classes: int,
        scale: float = 30.0,
        kernel_initializer: Any = None,
        *,
        dtype: Any = "float32",
        **kwargs: Any,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.num_classes = int(num_classes)
        self.scale = float(scale)
        self.kernel_initializer = initializers.get(
            kernel_initializer
            or initializers.VarianceScaling(1.0, "fan_in", distribution="untruncated_normal")
        )
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be greater than 0, got {scale}")

    def build(self, input_shape: Any) -> None:
        """Makes the class vectors."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.num_classes),
            initializer=self.kernel_initializer,
        )

    def call(self, features: Any) -> Any:
        """s cos θ, (B, C)."""
        return self.scale * ops.matmul(_unit(features, axis=-1), _unit(self.kernel, axis=0))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """(B, C)."""
        return (*input_shape[:-1], self.num_classes)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal layer."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "scale": self.scale,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class GraphClassifier(layers.Layer):
    """ML-GCN: a graph convolution over the labels makes the weights of the classifier.

    With the label embeddings E (C, D) and the normalised graph Â (C, C) of `label_graph`,

    `H = LeakyReLU(Â E W₁)`, `W = Â H W₂`, `z = x Wᵀ`.

    There is no activation after the second convolution, whose output are signed class weights, and
    no bias. W₁ (D, H) and W₂ (H, F) train. Graph and embeddings are weights that do not train, so a
    saved model needs no other file; the configuration holds their shapes alone.

    Args:
        graph: Â, (C, C).
        label_embeddings: E, (C, D), as of `read_label_embeddings`; one-hot if None.
        hidden_units: H. The publication uses 1024.
        negative_slope: of LeakyReLU.
        dtype: float32 also where the network computes in half precision.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        features: x, (B, F), a backbone's pooled features.

    Raises:
        ValueError: shapes that do not belong together, or numbers that are not finite.

    Reference: Chen et al., Multi-Label Image Recognition with Graph Convolutional Networks,
    CVPR 2019.

    Example:

    >>> import dbl_tf
    >>> statistics = dbl_tf.LabelStatistics.from_labels([[1, 1, 0], [1, 0, 0], [0, 0, 1]])
    >>> classifier = GraphClassifier(dbl_tf.label_graph(statistics), hidden_units=8)
    >>> tuple(classifier(np.ones((4, 16))).shape)
    (4, 3)
    """

    def __init__(
        self,
        graph: Any,
        label_embeddings: Any = None,
        *,
        hidden_units: int = 1024,
        negative_slope: float = 0.2,
        dtype: Any = "float32",
        **kwargs: Any,
    ):
        super().__init__(dtype=dtype, **kwargs)
        graph = np.asarray(graph, np.float64)
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or not graph.size:
            raise ValueError(f"graph must be of shape (C, C), got {graph.shape}")
        num_classes = len(graph)
        if label_embeddings is None:
            label_embeddings = np.eye(num_classes)
        embeddings = np.asarray(label_embeddings, np.float64)
        if embeddings.ndim != 2 or len(embeddings) != num_classes or not embeddings.size:
            raise ValueError(
                f"label_embeddings must be of shape ({num_classes}, D), a row for each row of "
                f"graph; got {embeddings.shape}"
            )
        for name, array in (("graph", graph), ("label_embeddings", embeddings)):
            if not np.isfinite(array).all():
                i = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
                raise ValueError(f"{name} must be finite, row {i} is not")
        if hidden_units < 1:
            raise ValueError(f"hidden_units must be at least 1, got {hidden_units}")
        self.num_classes, self.embedding_size = embeddings.shape
        self.hidden_units = int(hidden_units)
        self.negative_slope = float(negative_slope)
        self.graph = self._constant("graph", graph)
        self.label_embeddings = self._constant("label_embeddings", embeddings)

    def _constant(self, name: str, value: np.ndarray) -> Any:
        return self.add_weight(
            name=name,
            shape=value.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype),
            trainable=False,
        )

    def build(self, input_shape: Any) -> None:
        """Makes W₁ and W₂."""
        self.hidden_kernel = self.add_weight(
            name="hidden_kernel", shape=(self.embedding_size, self.hidden_units)
        )
        self.output_kernel = self.add_weight(
            name="output_kernel", shape=(self.hidden_units, input_shape[-1])
        )

    def class_weights(self) -> Any:
        """W, (C, F)."""
        x = ops.matmul(self.graph, ops.matmul(self.label_embeddings, self.hidden_kernel))
        x = ops.leaky_relu(x, negative_slope=self.negative_slope)
        return ops.matmul(self.graph, ops.matmul(x, self.output_kernel))

    def call(self, features: Any) -> Any:
        """z, (B, C)."""
        return ops.matmul(features, ops.transpose(self.class_weights()))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """(B, C)."""
        return (*input_shape[:-1], self.num_classes)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make a layer of the same structure; the graph comes with the weights."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "embedding_size": self.embedding_size,
            "hidden_units": self.hidden_units,
            "negative_slope": self.negative_slope,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GraphClassifier":
        """A layer of this structure, whose graph and embeddings are zero until weights are set."""
        config = dict(config)
        num_classes, embedding_size = config.pop("num_classes"), config.pop("embedding_size")
        graph = np.zeros((num_classes, num_classes))
        return cls(graph, np.zeros((num_classes, embedding_size)), **config)


def _unit(vectors: Any, axis: int) -> Any:
    """Vectors of unit length; zero where they are zero, with a finite gradient."""
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, 1e-12))
