"""The network: preprocessing, backbone, pooled features, and the head that gives the logits."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import layers, ops

from dbl_tf.classifiers import GraphClassifier

SMALL_RESNET = "small_resnet"

# The paper's training leaves the stem and the first stage of a pre-trained ResNet as they are.
_FROZEN_BY_DEFAULT = {name: ("conv1_", "conv2_") for name in ("ResNet50", "ResNet101", "ResNet152")}


def backbone_names() -> list[str]:
    """Names that `build_backbone` takes."""
    return [SMALL_RESNET, *sorted(_applications())]


def default_frozen_layers(backbone: str, pretrained: bool) -> tuple[str, ...]:
    """Prefixes of the layers that are not trained unless asked for otherwise."""
    return _FROZEN_BY_DEFAULT.get(backbone, ()) if pretrained else ()


def default_learning_rate(backbone: str, *, frozen: bool = False) -> float:
    """The rate of SGD with momentum 0.9 at which a network is trained unless asked for otherwise.

    The paper's 0.02 is for pre-trained ResNets, whose residual connections bear it. A MobileNet
    with kept BatchNorm statistics does not: on photographs, its features became equal for all
    images within 120 steps of binary cross-entropy, while 0.002, 0.005 and 0.01 trained alike.

    Args:
        backbone: its name.
        frozen: whether only the head trains, which bears the paper's rate above any backbone.
    """
    if frozen:
        return 0.02
    if backbone == SMALL_RESNET:
        return 0.05
    return 0.02 if backbone.startswith("ResNet") else 0.005


def build_backbone(
    name: str,
    image_size: int,
    *,
    weights: str | None = None,
    pretrained: bool | None = None,
    options: Mapping[str, Any] | None = None,
    frozen_layers: Sequence[str] = (),
) -> keras.Model:
    """A network from images to pooled features.

    Args:
        name: "small_resnet", or the name of a `keras.applications` network.
        image_size: S.
        weights: None for random ones, "imagenet", or a file that `load_weights` reads into the
            network without its top.
        pretrained: whether the network is treated as a pre-trained one; whether it has `weights`
            if None.
        options: further arguments of the network's constructor, such as `{"alpha": 0.75}`.
        frozen_layers: prefixes of the names of layers that are not to be trained.

    Returns:
        A model from (B, S, S, 3) images in [0, 255] to (B, F) features; the network's own
        preprocessing is part of it. Every BatchNorm of a pre-trained network keeps its statistics,
        while its scale and offset train where they are not frozen; without pre-training the
        statistics train too, synchronised over replicas.

    Raises:
        ValueError: an unknown name, options that the network does not take, weights that do not
            fit, or a prefix that no layer has.
    """
    shape = (image_size, image_size, 3)
    network, preprocess = _network(name, shape, weights, dict(options or {}))
    for prefix in frozen_layers:
        matching = [layer for layer in network.layers if layer.name.startswith(prefix)]
        if not matching:
            raise ValueError(
                f"no layer of {name} has a name that starts with {prefix!r}; they are "
                f"{', '.join(layer.name for layer in network.layers)}"
            )
        for layer in matching:
            layer.trainable = False
    images = keras.Input(shape, name="images")
    inputs = preprocess(images)
    if not (weights is not None if pretrained is None else pretrained):
        if keras.backend.backend() == "tensorflow":
            for layer in network.layers:
                if isinstance(layer, layers.BatchNormalization):
                    layer.synchronized = True
        maps = network(inputs)
    else:
        maps = InferenceMode(network, name="inference_mode")(inputs)
    features = layers.GlobalAveragePooling2D(name="features")(maps)
    return keras.Model(images, features, name="backbone")


def build_head(
    num_features: int,
    num_classes: int,
    *,
    seed: int = 0,
    classifier: layers.Layer | None = None,
    neck: bool = True,
) -> keras.Model:
    """The layers above the backbone: FC 256, BatchNorm, dropout 0.5, FC C; no activation.

    Args:
        num_features: F.
        num_classes: C.
        seed: of the dropout masks.
        classifier: a layer named "classifier" that gives (B, C) logits in place of FC C, such as
            `dbl_tf.CosineClassifier`.
        neck: whether FC 256, BatchNorm and dropout stand below the classifier; if not, it takes
            the features themselves.

    Returns:
        A model from (B, F) features to (B, C) logits in float32. FC 256 starts He-normal by
        fan-out, FC C from N(0, 0.01), biases at zero.
    """
    features = keras.Input((num_features,), name="features")
    x = features
    if neck:
        x = layers.Dense(
            256,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, mode="fan_out", distribution="untruncated_normal"
            ),
            name="neck",
        )(x)
        # PyTorch's BatchNorm, with which the recipe was made: 0.9 of the old statistics are kept.
        x = layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            synchronized=keras.backend.backend() == "tensorflow",
            name="neck_norm",
        )(x)
        x = StatelessDropout(0.5, seed=seed, name="neck_dropout")(x)
    if classifier is None:
        classifier = layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype="float32",
            name="classifier",
        )
    return keras.Model(features, classifier(x), name="head")


def join(backbone: keras.Model, head: keras.Model) -> keras.Model:
    """The whole network, from images in [0, 255] to logits; shares its parts' weights."""
    images = keras.Input(backbone.input_shape[1:], name="images")
    return keras.Model(images, head(backbone(images)), name="classifier")


def copy_weights(
    source: str, backbone: keras.Model, head: keras.Model, *, same_classes: bool
) -> None:
    """Starts a network from the weights of another, trained one.

    Args:
        source: a `.keras` file of a network that `join` made, or a directory with a `model.keras`.
        backbone: of `build_backbone`.
        head: of `build_head`.
        same_classes: whether the classifier is copied too. It is left as it is where the networks
            know different classes, and where their classifiers are of different kinds. The graph
            and the label embeddings of a `GraphClassifier` are always those of `head`.

    Raises:
        ValueError: the file holds no such network, or one with another backbone, or without the
            layers that `head` has below its classifier.
    """
    path = os.path.join(source, "model.keras") if os.path.isdir(source) else source
    if not os.path.isfile(path):
        raise ValueError(f"there are no weights to start from: {path} does not exist")
    trained = keras.models.load_model(path, compile=False)
    parts = {layer.name: layer for layer in trained.layers}
    if not {"backbone", "head"} <= set(parts):
        raise ValueError(f"{path} holds no network with a backbone and a head")
    shapes = [[tuple(w.shape) for w in b.weights] for b in (backbone, parts["backbone"])]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the backbone in {path} is another one than that of this run")
    backbone.set_weights(parts["backbone"].get_weights())
    others = {layer.name: layer for layer in parts["head"].layers}
    for layer in head.layers:
        if isinstance(layer, StatelessDropout):  # its count of steps is that of this run
            continue
        other = others.get(layer.name)
        if layer.name == "classifier" and not (same_classes and type(other) is type(layer)):
            continue
        if other is None:
            raise ValueError(
                f"the head in {path} is another one: it has no layer {layer.name}, only "
                f"{', '.join(others)}"
            )
        fixed = isinstance(layer, GraphClassifier)
        targets, sources = (
            each.trainable_variables if fixed else each.weights for each in (layer, other)
        )
        if [tuple(w.shape) for w in sources] != [tuple(w.shape) for w in targets]:
            raise ValueError(f"layer {layer.name} in {path} is of another shape than in this run")
        for target, source in zip(targets, sources, strict=True):
            target.assign(ops.convert_to_numpy(source))


@keras.saving.register_keras_serializable(package="dbl_tf")
class InferenceMode(layers.Wrapper):
    """Runs a network as for inference also while it trains: BatchNorm keeps its statistics.

    A model of layers would pass its own `training` argument down over one given to the network.
    The arguments are those of `keras.layers.Wrapper`, whose `layer` is the network.
    """

    def call(self, inputs: Any) -> Any:
        """What the network gives with `training=False`."""
        return self.layer(inputs, training=False)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the network."""
        return self.layer.compute_output_shape(input_shape)


@keras.saving.register_keras_serializable(package="dbl_tf")
class BackbonePreprocessing(layers.Layer):
    """The preprocessing that a `keras.applications` network was trained with, in float32.

    Args:
        application: name of the network.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, application: str, **kwargs: Any):
        # Half precision does not hold 256 grey levels with their interpolated values.
        super().__init__(dtype="float32", **{k: v for k, v in kwargs.items() if k != "dtype"})
        self.application = application
        self._preprocess = _applications()[application].preprocess_input

    def call(self, images: Any) -> Any:
        """Images in [0, 255] → what the network takes."""
        return self._preprocess(images)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The same shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal layer."""
        return {**super().get_config(), "application": self.application}


@keras.saving.register_keras_serializable(package="dbl_tf")
class StatelessDropout(layers.Layer):
    """Dropout whose mask is a function of (seed, step, place in the global batch) alone.

    So a step draws the same mask on one device and on several replicas, and after a restart: the
    count of steps is a weight of the layer, saved with the others.

    Args:
        rate: share of the units that are set to zero, in [0, 1).
        seed: integer.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, rate: float, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1), got {rate}")
        self.rate = float(rate)
        self.seed = int(seed)

    def build(self, input_shape: Any) -> None:
        """Makes the count of steps."""
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Zeroes a share of the units while training, and scales the others up."""
        if not training or not self.rate:
            return inputs
        replica, num_replicas = _replica()
        batch_size = ops.shape(inputs)[0]
        uniform = keras.random.uniform(
            (batch_size * num_replicas, *ops.shape(inputs)[1:]),
            seed=_FixedSeed([self.seed % 2**31, self.step]),
        )
        if num_replicas > 1:
            start = [replica * batch_size, *[0] * (len(inputs.shape) - 1)]
            uniform = ops.slice(uniform, start, ops.shape(inputs))
        self.step.assign(self.step + 1)
        kept = ops.cast(uniform >= self.rate, inputs.dtype)
        return inputs * kept / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The same shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal layer."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


class _FixedSeed(keras.random.SeedGenerator):
    """Hands `keras.random` a seed that is computed, where it takes integers and generators."""

    def __init__(self, state: list[Any]):
        self._words = state

    def next(self, ordered: bool = True) -> Any:
        dtype = "uint32" if keras.backend.backend() == "jax" else "int32"
        return ops.stack([ops.cast(word, dtype) for word in self._words])


def _replica() -> tuple[Any, int]:
    """This replica's number and how many there are in the running step."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return context.replica_id_in_sync_group, context.num_replicas_in_sync
    return 0, 1


def _applications() -> dict[str, Any]:
    """Modules of `keras.applications` by the names of their networks."""
    networks = {n: f for n, f in vars(keras.applications).items() if n[0].isupper()}
    return {
        name: getattr(keras.applications, network.__module__.rpartition(".")[2])
        for name, network in networks.items()
    }


def _network(
    name: str, shape: tuple[int, int, int], weights: str | None, options: dict[str, Any]
) -> tuple[keras.Model, Callable[[Any], Any]]:
    """The network without its top, weights loaded, and its preprocessing."""
    if name == SMALL_RESNET:
        if weights == "imagenet":
            raise ValueError(f"there are no ImageNet weights of {SMALL_RESNET}")
        build, preprocess = (
            _small_resnet,
            layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="rescaling"),
        )
    elif name in _applications():
        build = getattr(keras.applications, name)
        preprocess = BackbonePreprocessing(name, name="preprocessing")
        options = {"include_top": False, **options}
    else:
        raise ValueError(f"backbone must be one of {', '.join(backbone_names())}; got {name!r}")
    in_file = weights not in (None, "imagenet")
    if in_file and not os.path.isfile(weights):
        raise ValueError(f"backbone weights must be 'imagenet', 'none' or a file; {weights} is not")
    if name != SMALL_RESNET:
        options["weights"] = None if in_file else weights
    try:
        network = build(input_shape=shape, **options)
    except TypeError as error:
        raise ValueError(f"{name} does not take these options, {options}: {error}") from error
    if in_file:
        try:
            with warnings.catch_warnings():
                # Keras looks for the layers a second time, in a list of its own, and says for each
                # that the file lacks that list; missing weights are an error.
                warnings.filterwarnings("ignore", "Skipping nested container at '_operations_by")
                network.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(
                f"{weights} does not hold weights of {name} with options {options} and without "
                f"its top: {error}"
            ) from error
    return network, preprocess


def _small_resnet(
    input_shape: tuple[int, int, int], width: int = 16, blocks: int = 1
) -> keras.Model:
    """Three stages of residual blocks, for small images and processors without a GPU."""

    def convolution(x: Any, filters: int, strides: int, size: int = 3) -> Any:
        x = layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    images = keras.Input(input_shape)
    x = layers.ReLU()(convolution(images, width, 1))
    for stage in range(3):
        for block in range(blocks):
            filters, strides = width * 2**stage, 2 if block == 0 else 1
            shortcut = convolution(x, filters, strides, size=1) if block == 0 else x
            x = layers.ReLU()(convolution(x, filters, strides))
            x = layers.ReLU()(convolution(x, filters, 1) + shortcut)
    return keras.Model(images, x, name=SMALL_RESNET)
