"""Classifier layers of the compared methods, from features (B, F) to logits (B, C).

LDAM uses a cosine classifier; ML-GCN uses a classifier over a graph of labels.
"""

from typing import Any

import keras
import numpy as np
from keras import initializers, layers, ops

from dbl_tf.parameters import DEFAULTS, check_parameters


@keras.saving.register_keras_serializable(package="dbl_tf")
class CosineClassifier(layers.Layer):
    """Computes logits `s cos θ` from the angles between features and class vectors, without bias.

    Features and class vectors are divided by their L2 norms. `dbl_tf.LDAMLoss` expects these
    logits.

    Args:
        num_classes: the number C of classes.
        scale: the scale s > 0 of the logits.
        kernel_initializer: the initializer of the class vectors, (F, C). The default is normal with
            variance 1/F, which gives vectors of about unit length. A training step turns longer
            vectors by smaller angles.
        dtype: the type of the layer; float32 even if the network computes in half precision.
        **kwargs: further arguments of `keras.layers.Layer`.

    Call arguments:
        features: the features, shape (B, F). If all features of an example are zero, its logits
            are zero.

    Raises:
        ValueError: if `scale` is not positive, or `num_classes` is less than 1.

    References: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss,
    NeurIPS 2019; Wang et al., NormFace, ACM Multimedia 2017.

    Example:

    >>> layer = CosineClassifier(2, kernel_initializer="ones")
    >>> logits = layer(np.array([[3.0, 3.0], [0.0, -5.0]]))
    >>> ops.convert_to_numpy(logits).round().tolist()
    [[30.0, 30.0], [-21.0, -21.0]]
    """

    def __init__(
        self,
        num_classes: int,
        scale: float = DEFAULTS.cosine_scale,
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
        check_parameters(cosine_scale=self.scale, arguments={"cosine_scale": "scale"})

    def build(self, input_shape: Any) -> None:
        """Creates the class vectors."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.num_classes),
            initializer=self.kernel_initializer,
        )

    def call(self, features: Any) -> Any:
        """Returns the logits s cos θ, (B, C)."""
        return self.scale * ops.matmul(_unit(features, axis=-1), _unit(self.kernel, axis=0))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape (B, C)."""
        return (*input_shape[:-1], self.num_classes)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "scale": self.scale,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class GraphClassifier(layers.Layer):
    """Computes logits with class weights from a graph convolution over the labels, as in ML-GCN.

    With the label embeddings E (C, D) and the normalized graph Â (C, C) of `label_graph`,

    `H = LeakyReLU(Â E W₁)`, `W = Â H W₂`, `z = x Wᵀ`.

    There is no bias, and no activation follows the second convolution, because its outputs are
    signed class weights. W₁ (D, H) and W₂ (H, F) are trained. The graph and the embeddings are
    non-trainable weights, so that a saved model needs no other file; the configuration contains
    only their shapes.

    Args:
        graph: the normalized graph Â, shape (C, C).
        label_embeddings: the label embeddings E, shape (C, D), for example from
            `read_label_embeddings`; one-hot if None.
        hidden_units: the number H of hidden units. The publication uses 1024.
        negative_slope: the slope of LeakyReLU for negative inputs.
        dtype: the type of the layer; float32 even if the network computes in half precision.
        **kwargs: further arguments of `keras.layers.Layer`.

    Call arguments:
        features: the pooled features x of a backbone, shape (B, F).

    Raises:
        ValueError: if the shapes do not match, or a number is not finite.

    Reference: Chen et al., Multi-Label Image Recognition with Graph Convolutional Networks,
    CVPR 2019.

    Example:

    >>> from dbl_tf import LabelStatistics, label_graph
    >>> statistics = LabelStatistics.from_labels([[1, 1, 0], [1, 0, 0], [0, 0, 1]])
    >>> classifier = GraphClassifier(label_graph(statistics), hidden_units=8)
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
                f"label_embeddings must be of shape ({num_classes}, D), with a row for each row "
                f"of graph; got {embeddings.shape}"
            )
        for name, array in (("graph", graph), ("label_embeddings", embeddings)):
            if not np.isfinite(array).all():
                i = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
                raise ValueError(f"{name} must be finite, but row {i} is not")
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
        """Creates W₁ and W₂."""
        self.hidden_kernel = self.add_weight(
            name="hidden_kernel", shape=(self.embedding_size, self.hidden_units)
        )
        self.output_kernel = self.add_weight(
            name="output_kernel", shape=(self.hidden_units, input_shape[-1])
        )

    def class_weights(self) -> Any:
        """Returns the class weights W, (C, F)."""
        x = ops.matmul(self.graph, ops.matmul(self.label_embeddings, self.hidden_kernel))
        x = ops.leaky_relu(x, negative_slope=self.negative_slope)
        return ops.matmul(self.graph, ops.matmul(x, self.output_kernel))

    def call(self, features: Any) -> Any:
        """Returns the logits z, (B, C)."""
        return ops.matmul(features, ops.transpose(self.class_weights()))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape (B, C)."""
        return (*input_shape[:-1], self.num_classes)

    def get_config(self) -> dict[str, Any]:
        """Returns the structure of the layer; the graph is saved with the weights."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "embedding_size": self.embedding_size,
            "hidden_units": self.hidden_units,
            "negative_slope": self.negative_slope,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GraphClassifier":
        """Returns a layer whose graph and embeddings are zero until its weights are set."""
        config = dict(config)
        num_classes, embedding_size = config.pop("num_classes"), config.pop("embedding_size")
        graph = np.zeros((num_classes, num_classes))
        return cls(graph, np.zeros((num_classes, embedding_size)), **config)


def _unit(vectors: Any, axis: int) -> Any:
    """Vectors scaled to unit length; zero vectors stay zero, with a finite gradient."""
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, 1e-12))
