"""The network: preprocessing, backbone, pooled features, and the head that gives the logits."""

import inspect
import os
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from dbl_tf import hub, keras_internals, replicas
from dbl_tf.classifiers import GraphClassifier
from dbl_tf.messages import did_you_mean, one_line
from dbl_tf.names import HUB_PREFIX, HUB_PRESET, SMALL_RESNET, is_hub

# The default learning rates of SGD are those of so many classes, times C over this number.
CLASSES_OF_RATES = 20
# The default learning rate of AdamW for a head on fixed features, and for a network from scratch.
ADAMW_HEAD_RATE = 0.002
_FEATURE_SCALING = "feature_scaling"  # the name of the layer

# The paper's training does not change the stem and the first stage of a pre-trained ResNet.
_FROZEN_BY_DEFAULT = {name: ("conv1_", "conv2_") for name in ("ResNet50", "ResNet101", "ResNet152")}

# For a file of a network that cannot be used.
_REMEDY = "restore it from a copy, or start the training command that wrote it again"
# Arguments of the networks of Keras that are no options, and what decides them.
_NO_OPTIONS = {
    "input_shape": "input_shape follows from the size of the images",
    "input_tensor": "input_tensor is made here",
    "weights": "weights has a setting of its own",
    **dict.fromkeys(
        ("include_top", "classes", "classifier_activation"),
        "the top of the network is replaced by the head",
    ),
}


def backbone_names() -> list[str]:
    """The names that `build_backbone` accepts."""
    return [SMALL_RESNET, *sorted(_preprocessing_modules())]


def check_backbone(name: str) -> None:
    """Refuses what is no name of a backbone.

    Raises:
        ValueError: the message lists the names.
    """
    if not is_hub(name) and name not in backbone_names():
        raise ValueError(
            f"backbone must be {HUB_PREFIX}PRESET_OR_FOLDER or one of "
            f"{', '.join(backbone_names())}; got {name!r}{did_you_mean(name, backbone_names())}"
        )


def load(path: str | os.PathLike) -> keras.Model:
    """Loads a network from a `.keras` file that a run has written.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no such file, damaged, or holds a network of KerasHub, which is not
            installed. The message is one line and names it.
    """
    _check_archive(path)
    hub.import_for(path)
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras has no class of errors for files that it cannot read
        raise ValueError(f"{path} holds no network: {one_line(error)}; {_REMEDY}") from error


def _check_archive(path: str | os.PathLike) -> None:
    """Compares all checksums of a `.keras` file, which Keras does not do for all that it reads."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if "config.json" not in archive.namelist():
                    raise ValueError("it has no config.json")
                damaged = archive.testzip()
        except Exception as error:  # a place that the archive gives, but does not have; and others
            raise ValueError(
                f"{path} is no .keras file, or damaged: {one_line(error)}; {_REMEDY}"
            ) from error
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: {damaged!r} in it is not as it was written; {_REMEDY}"
        )


def default_frozen_layers(backbone: str, pretrained: bool) -> tuple[str, ...]:
    """The prefixes of the layers that are not trained by default."""
    return _FROZEN_BY_DEFAULT.get(backbone, ()) if pretrained else ()


def default_learning_rate(
    backbone: str, num_classes: int, *, frozen: bool = False, optimizer: str = "sgd"
) -> float:
    """The default learning rate of a network.

    SGD with momentum 0.9: the loss is a mean over B × C elements, so that its gradient with respect
    to one logit is proportional to 1/C. The rate is proportional to C, and a step changes a logit
    as much as the rate at 20 classes does, for which the paper gives 0.02. The step of Adam does
    not depend on the scale of the loss, and neither does its rate.

    The 0.02 of the paper is for pre-trained ResNets; networks without residual connections diverge
    at such rates. On photographs, the features of a MobileNet with fixed BatchNorm statistics
    became equal for all images within 120 steps of binary cross-entropy at 0.02, while 0.002, 0.005
    and 0.01 gave similar results.

    Args:
        backbone: the name of the network.
        num_classes: the number C of classes over which the loss is a mean; `CLASSES_OF_RATES` for a
            loss that is a mean over examples alone.
        frozen: whether only the head is trained, which is stable at the paper's rate above any
            backbone.
        optimizer: "sgd" or "adamw".
    """
    if optimizer == "adamw":
        return ADAMW_HEAD_RATE if frozen or backbone == SMALL_RESNET else 1e-4
    if frozen:
        of_20_classes = 0.02
    elif backbone == SMALL_RESNET:
        of_20_classes = 0.1
    else:
        of_20_classes = 0.02 if backbone.startswith("ResNet") else 0.005
    return of_20_classes * num_classes / CLASSES_OF_RATES


def default_backbone_rate(num_classes: int, optimizer: str = "sgd") -> float:
    """The default factor of the learning rate for the layers below the head.

    The gradient that SGD's rate of `default_learning_rate` meets below the head is a sum over the
    classes divided by C. Where their shares have random signs, it is proportional to 1/√C, and the
    factor √(20/C) makes a step of these layers what it is at 20 classes.

    Args:
        num_classes: see `default_learning_rate`.
        optimizer: "sgd" or "adamw".
    """
    return min(1.0, (CLASSES_OF_RATES / num_classes) ** 0.5) if optimizer == "sgd" else 1.0


def build_backbone(
    name: str,
    image_size: int,
    *,
    weights: str | None = None,
    pretrained: bool | None = None,
    options: Mapping[str, Any] | None = None,
    frozen_layers: Sequence[str] = (),
) -> keras.Model:
    """Builds a network from images to pooled features.

    Args:
        name: "small_resnet", the name of a `keras.applications` network, or `hub:` and a preset of
            KerasHub or a folder of one.
        image_size: the side S of the images.
        weights: None for random weights, "imagenet", or a file that `load_weights` reads into the
            network without its top; "preset" for a network of KerasHub.
        pretrained: whether the network is treated as a pre-trained one. By default it is if it has
            `weights`.
        options: further arguments of the network's constructor, such as `{"alpha": 0.75}`.
        frozen_layers: the prefixes of the names of layers that are not trained.

    Returns:
        A model from (B, S, S, 3) images in [0, 255] to (B, F) features. The preprocessing that the
        network was trained with is part of it. Every BatchNorm of a pre-trained network keeps its
        statistics, while its scale and offset train unless they are frozen; without pre-training
        the statistics train too, synchronized over replicas.

    Raises:
        ValueError: the name is unknown, the network does not accept the options, the weights do not
            fit, or no layer has one of the prefixes.
    """
    shape = (image_size, image_size, 3)
    network, preprocess = _network(name, shape, weights, dict(options or {}))
    parts = hub.layers_of(network) if is_hub(name) else network.layers
    for prefix in frozen_layers:
        matching = [layer for layer in parts if layer.name.startswith(prefix)]
        if not matching:
            raise ValueError(
                f"no layer of {name} has a name that starts with {prefix!r}; its layers are "
                f"{', '.join(layer.name for layer in parts)}"
            )
        for layer in matching:
            layer.trainable = False
    images = keras.Input(shape, name="images")
    inputs = preprocess(images)
    if not (weights is not None if pretrained is None else pretrained):
        if keras.backend.backend() == "tensorflow":
            for layer in parts:
                if isinstance(layer, layers.BatchNormalization):
                    layer.synchronized = True
        maps = network(inputs)
    else:
        maps = InferenceMode(network, name="inference_mode")(inputs)
    pool = layers.GlobalAveragePooling2D if len(maps.shape) == 4 else layers.Identity
    return keras.Model(images, pool(name="features")(maps), name="backbone")


def build_head(
    num_features: int,
    num_classes: int,
    *,
    seed: int = 0,
    classifier: layers.Layer | None = None,
    neck: bool = True,
    scale_features: bool = False,
) -> keras.Model:
    """Builds the layers above the backbone: FC 256, BatchNorm, dropout 0.5, FC C; no activation.

    Args:
        num_features: the number F of features.
        num_classes: the number C of classes.
        seed: the seed of the dropout masks.
        classifier: a layer named "classifier" that returns (B, C) logits and replaces FC C, such as
            `dbl_tf.CosineClassifier`.
        neck: whether FC 256, BatchNorm and dropout precede the classifier. Without them, it
            receives the features themselves.
        scale_features: whether a `FeatureScaling` comes first, which the function of this name
            has to set.

    Returns:
        A model from (B, F) features to (B, C) logits in float32. FC 256 is initialized He-normal by
        fan-out, FC C from N(0, 0.01), biases with zeros.
    """
    features = keras.Input((num_features,), name="features")
    x = FeatureScaling(name=_FEATURE_SCALING)(features) if scale_features else features
    if neck:
        x = layers.Dense(
            256,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, mode="fan_out", distribution="untruncated_normal"
            ),
            name="neck",
        )(x)
        # The recipe was made with PyTorch's BatchNorm, which keeps 0.9 of the old statistics.
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


def scale_features(head: keras.Model, means: np.ndarray, deviations: np.ndarray) -> None:
    """Sets the `FeatureScaling` of a head.

    Args:
        head: the result of `build_head` with `scale_features`.
        means: the means of the training features, (F,).
        deviations: their standard deviations, (F,).
    """
    head.get_layer(_FEATURE_SCALING).set(means, deviations)


def join(backbone: keras.Model | None, head: keras.Model) -> keras.Model:
    """Joins backbone and head to a network from images in [0, 255] to logits.

    The network shares the weights of its two parts. Without a backbone it is the head itself, from
    features to logits.
    """
    if backbone is None:
        return head
    images = keras.Input(backbone.input_shape[1:], name="images")
    return keras.Model(images, head(backbone(images)), name="classifier")


def copy_weights(
    source: str, backbone: keras.Model | None, head: keras.Model, *, same_classes: bool
) -> None:
    """Initializes a network with the weights of a trained one.

    Args:
        source: a `.keras` file of a network that `join` made, or a directory with a `model.keras`.
        backbone: the result of `build_backbone`; None if the network is a head on features.
        head: the result of `build_head`.
        same_classes: whether the networks know the same classes, so that the classifier is copied
            too. It is not copied if the classifiers are of different kinds. A `GraphClassifier`
            always keeps its own graph and label embeddings.

    Raises:
        ValueError: the file holds no such network, or one with another backbone, or one that lacks
            layers that `head` has below its classifier.
    """
    path = os.path.join(source, "model.keras") if os.path.isdir(source) else source
    if not os.path.isfile(path):
        raise ValueError(f"{path} does not exist, so there are no weights to start from")
    trained = load(path)
    parts = {layer.name: layer for layer in trained.layers}
    if backbone is None:
        parts = {"head": trained}
        if trained.name != "head":
            raise ValueError(
                f"{path} holds a network of images, {trained.name}, and not a head on features"
            )
    elif not {"backbone", "head"} <= set(parts):
        raise ValueError(
            f"{path} does not hold a network that consists of a backbone and a head; its layers "
            f"are {', '.join(parts)}"
        )
    if backbone is not None:
        shapes = [[tuple(w.shape) for w in b.weights] for b in (backbone, parts["backbone"])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the backbone in {path} has variables of other shapes than the backbone of this "
                "run"
            )
        backbone.set_weights(parts["backbone"].get_weights())
    others = {layer.name: layer for layer in parts["head"].layers}
    for layer in head.layers:
        if isinstance(layer, StatelessDropout):  # it counts the steps of this run
            continue
        other = others.get(layer.name)
        if layer.name == "classifier" and not (same_classes and type(other) is type(layer)):
            continue
        if other is None:
            hint = " (pass --noscale_features)" if layer.name == _FEATURE_SCALING else ""
            raise ValueError(
                f"the head in {path} has no layer {layer.name}{hint}; its layers are "
                f"{', '.join(others)}"
            )
        fixed = isinstance(layer, GraphClassifier)
        new, old = (each.trainable_variables if fixed else each.weights for each in (layer, other))
        if [tuple(w.shape) for w in old] != [tuple(w.shape) for w in new]:
            raise ValueError(
                f"layer {layer.name} in {path} has weights of other shapes than in this run"
            )
        for variable, value in zip(new, old, strict=True):
            variable.assign(ops.convert_to_numpy(value))


@keras.saving.register_keras_serializable(package="dbl_tf")
class InferenceMode(layers.Wrapper):
    """Runs a network in inference mode even in training, so that BatchNorm keeps its statistics.

    Without this layer, the enclosing model would override the network's `training` argument with
    its own. The arguments are those of `keras.layers.Wrapper`, whose `layer` is the network.
    """

    def call(self, inputs: Any) -> Any:
        """The output of the network with `training=False`."""
        return self.layer(inputs, training=False)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The output shape of the network."""
        return self.layer.compute_output_shape(input_shape)


@keras.saving.register_keras_serializable(package="dbl_tf")
class BackbonePreprocessing(layers.Layer):
    """The preprocessing that a `keras.applications` network was trained with, in float32.

    Args:
        application: the name of the network.
        **kwargs: further arguments of `keras.layers.Layer`.
    """

    def __init__(self, application: str, **kwargs: Any):
        # Half precision cannot represent 256 gray levels and the values interpolated between them.
        super().__init__(dtype="float32", **{k: v for k, v in kwargs.items() if k != "dtype"})
        self.application = application
        self._preprocess = _preprocessing_modules()[application].preprocess_input

    def call(self, images: Any) -> Any:
        """Converts images in [0, 255] to the input of the network."""
        return self._preprocess(images)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {**super().get_config(), "application": self.application}


@keras.saving.register_keras_serializable(package="dbl_tf")
class FeatureScaling(layers.Layer):
    """Brings features in units of their own, such as lengths beside counts, to one scale.

    The gradient of a weight is proportional to the feature that it multiplies, so that features of
    large numbers would drown the others. With the means μ and the standard deviations σ of the
    training features, they become `(x − μ)·r/σ`. Where most are of one kind, such as the words of a
    text or the outputs of a network, their relative sizes mean something: if the 5 % and the 95 %
    quantile of σ differ less than tenfold, r = σ/median(σ), within [1/3, 3]. Otherwise r = 1. A
    feature that is constant among the training examples becomes 0, whatever its value elsewhere.

    μ and r/σ are weights, which are saved with the others. Until `set` is called, features pass
    unchanged. The arguments are those of `keras.layers.Layer`.
    """

    def __init__(self, **kwargs: Any):
        # Half precision cannot hold features of any unit.
        super().__init__(dtype="float32", **{k: v for k, v in kwargs.items() if k != "dtype"})

    def build(self, input_shape: Any) -> None:
        """Creates the means and the factors."""
        shape = (input_shape[-1],)
        self.means = self.add_weight(
            name="means", shape=shape, initializer="zeros", trainable=False
        )
        self.factors = self.add_weight(
            name="factors", shape=shape, initializer="ones", trainable=False
        )

    def set(self, means: np.ndarray, deviations: np.ndarray) -> None:
        """Sets means and factors by the means and standard deviations of features, each (F,)."""
        means, deviations = np.asarray(means, np.float64), np.asarray(deviations, np.float64)
        # What is left of a constant in float32 is rounding, and its deviation is no unit.
        varies = deviations > np.finfo(np.float32).eps * np.abs(means)
        factors = np.zeros_like(deviations)
        if varies.any():
            of_varying = deviations[varies]
            low, median, high = np.quantile(of_varying, [0.05, 0.5, 0.95])
            are_of_one_kind = high < 10 * low
            relative = np.clip(of_varying / median, 1 / 3, 3) if are_of_one_kind else 1.0
            factors[varies] = np.minimum(relative / of_varying, np.finfo(np.float32).max)
        self.means.assign(means.astype(np.float32))
        self.factors.assign(factors.astype(np.float32))

    def call(self, features: Any) -> Any:
        """Scales features (B, F)."""
        return (features - self.means) * self.factors

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape


@keras.saving.register_keras_serializable(package="dbl_tf")
class StatelessDropout(layers.Layer):
    """Dropout whose mask depends on nothing but (seed, step, place in the global batch).

    A step therefore draws the same mask on one device, on several replicas, and after a restart:
    the count of steps is a weight of the layer, which is saved with the others.

    Args:
        rate: the share of the units that are set to zero, in [0, 1).
        seed: an integer.
        **kwargs: further arguments of `keras.layers.Layer`.
    """

    def __init__(self, rate: float, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1), got {rate}")
        self.rate = float(rate)
        self.seed = int(seed)

    def build(self, input_shape: Any) -> None:
        """Creates the count of steps."""
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Sets a share of the units to zero in training, and scales the others up."""
        if not training or not self.rate:
            return inputs
        replica, num_replicas = replicas.this_replica()
        batch_size = ops.shape(inputs)[0]
        uniform = keras.random.uniform(
            (batch_size * num_replicas, *ops.shape(inputs)[1:]),
            seed=keras_internals.ComputedSeed([self.seed % 2**31, self.step]),
        )
        if num_replicas > 1:
            start = [replica * batch_size, *[0] * (len(inputs.shape) - 1)]
            uniform = ops.slice(uniform, start, ops.shape(inputs))
        self.step.assign(self.step + 1)
        kept = ops.cast(uniform >= self.rate, inputs.dtype)
        return inputs * kept / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def _preprocessing_modules() -> dict[str, types.ModuleType]:
    """The modules that hold `preprocess_input`, by the names of the networks it belongs to."""
    modules = {
        name: module
        for module in vars(keras.applications).values()
        if inspect.ismodule(module) and hasattr(module, "preprocess_input")
        for name in vars(module)
        if name[0].isupper()
    }
    # Keras exports these two networks next to the module of their preprocessing, not in it.
    for name in ("MobileNetV3Large", "MobileNetV3Small"):
        modules[name] = keras.applications.mobilenet_v3
    return modules


def _network(
    name: str, shape: tuple[int, int, int], weights: str | None, options: dict[str, Any]
) -> tuple[keras.Model, Callable[[Any], Any]]:
    """Builds a network without its top, with its weights loaded; and its preprocessing."""
    check_backbone(name)
    if is_hub(name):
        if weights not in (None, HUB_PRESET):
            raise ValueError(f"{name} has the weights of its preset; got {weights!r}")
        return hub.build(name, shape[0], load_weights=weights is not None, options=options)
    if name == SMALL_RESNET:
        if weights == "imagenet":
            raise ValueError(f"there are no ImageNet weights for {SMALL_RESNET}")
        build, preprocess = (
            _small_resnet,
            layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="rescaling"),
        )
    else:
        build = getattr(keras.applications, name)
        preprocess = BackbonePreprocessing(name, name="preprocessing")
    _check_options(name, build, options)
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "its defaults"
    file = None if weights == "imagenet" else weights
    if file is not None and not os.path.isfile(file):
        raise ValueError(
            f"backbone weights must be 'imagenet', 'none' or a file; there is no file {file}"
        )
    fixed: dict[str, Any] = {}
    if name != SMALL_RESNET:
        fixed = {"include_top": False, "weights": weights if file is None else None}
    try:
        network = build(input_shape=shape, **fixed, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be built with {shown} for images of {shape[0]} × {shape[1]} pixels: "
            f"{one_line(error)}"
        ) from error
    if file is not None:
        try:
            keras_internals.load_weights(network, file)
        except Exception as error:  # HDF5 and Keras raise many where bits of a file have changed
            raise ValueError(
                f"{file} does not hold weights of {name} with {shown} and without its top: "
                f"{one_line(error)}"
            ) from error
        wrong = [w.path for w in network.weights if not np.isfinite(ops.convert_to_numpy(w)).all()]
        if wrong:
            raise ValueError(
                f"{file} holds weights of {name} that are not finite numbers, the first in "
                f"{wrong[0]}"
            )
    return network, preprocess


def _check_options(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses options that a network does not have, or that `build_backbone` sets itself."""
    known = [each for each in inspect.signature(build).parameters if each not in _NO_OPTIONS]
    for option in options:
        if option in _NO_OPTIONS:
            raise ValueError(f"{_NO_OPTIONS[option]}, and is no option of the backbone {name}")
        if option not in known:
            raise ValueError(
                f"{name} has no option {option!r}; it has {', '.join(known)}"
                f"{did_you_mean(option, known)}"
            )


def _small_resnet(
    input_shape: tuple[int, int, int], width: int = 16, blocks: int = 1
) -> keras.Model:
    """Builds three stages of residual blocks, for small images and machines without a GPU."""

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
