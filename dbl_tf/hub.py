"""Image encoders of KerasHub as backbones, with their weights and their preprocessing.

`hub:PRESET_OR_FOLDER` names a preset of KerasHub, which it downloads, or a folder that
`save_to_preset` of a network and of its image converter wrote. The extra `hub` brings KerasHub.
"""

import functools
import importlib.util
import inspect
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from dbl_tf.messages import did_you_mean
from dbl_tf.names import HUB_PREFIX, is_hub

# The first token of these transformers stands for the whole image.
_WITH_CLASS_TOKEN = ("DINOV2Backbone", "DINOV3Backbone", "DeiTBackbone", "ViTBackbone")
# Of networks for images and texts, what turns an image into its embedding.
_PARTS_WITH_TEXT = {
    "CLIPBackbone": ("vision_encoder", "vision_pooler", "vision_projection"),
    "SigLIPBackbone": ("vision_encoder",),
}
# Transformers whose position embeddings are for images of one size.
_OF_ONE_SIZE = ("DeiTBackbone", "ViTBackbone", *_PARTS_WITH_TEXT)

# Stands for patches that are hidden from DINO in its own training, and has no gradient here.
_MASK_TOKEN = "mask_token"

_Options = tuple[tuple[str, Any], ...]


def absolute(name: str) -> str:
    """Returns the name of a backbone, with an absolute path where it is `hub:` and a folder."""
    folder = os.path.expanduser(name.removeprefix(HUB_PREFIX))
    return HUB_PREFIX + os.path.abspath(folder) if is_hub(name) and os.path.isdir(folder) else name


def check_installed() -> None:
    """Refuses to go on without KerasHub.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise ValueError(
            "networks of KerasHub need keras_hub, not installed here: pip install 'dbl-tf[hub]'"
        )


def image_size(name: str) -> int | None:
    """Returns the side of the images that a network was made for; None if it takes any.

    Args:
        name: `hub:` and a preset or a folder.

    Raises:
        ValueError: see `build`.
    """
    return _kind_and_size(name)[1]


def build(
    name: str, size: int, *, load_weights: bool, options: Mapping[str, Any] | None = None
) -> tuple[keras.Model, layers.Layer]:
    """Builds an image encoder and its preprocessing.

    Args:
        name: `hub:` and a preset or a folder.
        size: the side S of the images.
        load_weights: whether to load the weights of the preset; otherwise they are random.
        options: further arguments of the network's constructor.

    Returns:
        The network from preprocessed images (B, S, S, 3) to maps (B, h, w, F), which are still to
        be pooled, or to features (B, F): the class token of ViT, DeiT and DINO, and the image
        embedding of CLIP and SigLIP. And the layer from images in [0, 255] to the inputs of the
        network, with the scale and offset of the preset. Resizing is left to the caller.

    Raises:
        ValueError: KerasHub is not installed or cannot load the preset; it is no image encoder of
            these kinds; it does not take the options, or images of this size.
    """
    fixed: _Options = tuple(sorted((options or {}).items()))
    kind, own = _kind_and_size(name)
    # A network of KerasHub takes any argument, and drops those that it does not know.
    known = inspect.signature(kind).parameters
    unknown = sorted(set(dict(fixed)) - set(known))
    if unknown:
        raise ValueError(
            f"{name} is a {kind.__name__}, which has no option {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], known)}"
        )
    if kind.__name__ in _OF_ONE_SIZE:
        if own != size:
            raise ValueError(
                f"{name} takes images of {own} × {own} pixels alone; leave --image_size out, or "
                f"pass --image_size={own}"
            )
    elif own != size:
        fixed += (("image_shape", (size, size, 3)),)
    if load_weights:
        encoder = _encoder(name, _load(name, fixed, load_weights=True))
    else:
        encoder = ImageEncoder.from_config(
            _encoder_config(name, fixed, keras.config.dtype_policy().name)
        )
    images = keras.Input((size, size, 3), name="preprocessed")
    scale, offset = _scale_and_offset(name)
    preprocessing = layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")
    return keras.Model(images, encoder(images), name="hub"), preprocessing


def layers_of(network: keras.Model) -> list[layers.Layer]:
    """Returns the layers of a network that `build` gave, those that can be frozen by name."""
    parts = network.get_layer("image_encoder").parts
    return [
        layer
        for part in parts
        for layer in (part.layers if isinstance(part, keras.Model) else [part])
    ]


def import_for(path: str | os.PathLike) -> None:
    """Imports KerasHub if a `.keras` file holds a network of it, such that Keras can load it.

    Raises:
        ValueError: KerasHub is not installed.
    """
    with zipfile.ZipFile(path) as archive:
        needs_hub = b"keras_hub" in archive.read("config.json")
    if needs_hub:
        _hub()


@keras.saving.register_keras_serializable(package="dbl_tf")
class ImageEncoder(layers.Layer):
    """Layers of KerasHub in a row, from preprocessed images to maps or features.

    KerasHub restores its networks from the configurations of whole networks, and not from those of
    their layers, so the graph of Keras must not look inside.

    Args:
        parts: the layers.
        input_key: the name under which the first one takes images; None for the images themselves.
        takes_class_token: whether the first token of the result stands for the image.
        **kwargs: further arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        parts: Sequence[layers.Layer],
        input_key: str | None = None,
        takes_class_token: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.parts = list(parts)
        self.input_key = input_key
        self.takes_class_token = takes_class_token
        for variable in self.variables:
            if variable.name == _MASK_TOKEN:
                variable.trainable = False

    def call(self, images: Any) -> Any:
        """Returns maps (B, h, w, F) or features (B, F)."""
        x = images if self.input_key is None else {self.input_key: images}
        for part in self.parts:
            x = part(x)
        return x[:, 0] if self.takes_class_token else x

    def build(self, input_shape: Any) -> None:
        """Has nothing to build: the parts are complete."""

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {
            **super().get_config(),
            "parts": [keras.saving.serialize_keras_object(part) for part in self.parts],
            "input_key": self.input_key,
            "takes_class_token": self.takes_class_token,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ImageEncoder":
        """Creates a layer from what `get_config` returned."""
        parts = [keras.saving.deserialize_keras_object(part) for part in config["parts"]]
        return cls(**{**config, "parts": parts})


def _hub() -> Any:
    check_installed()
    import keras_hub

    return keras_hub


def _load(name: str, options: _Options, *, load_weights: bool) -> keras.Model:
    preset = name.removeprefix(HUB_PREFIX)
    try:
        return _hub().models.Backbone.from_preset(
            preset,
            load_weights=load_weights,
            dtype=keras.config.dtype_policy().name,
            **dict(options),
        )
    except Exception as error:  # what downloads it has classes of its own
        raise ValueError(f"KerasHub cannot load {preset!r}: {error}") from error


@functools.lru_cache(maxsize=4)
def _kind_and_size(name: str) -> tuple[type[keras.Model], int | None]:
    """Returns the class of a network, and the side of the images that it was made for."""
    backbone = _load(name, (), load_weights=False)
    kind = type(backbone)
    encoder = backbone.vision_encoder if kind.__name__ in _PARTS_WITH_TEXT else backbone
    shape = getattr(encoder, "image_shape", None)
    if shape is None:
        raise ValueError(f"{name} is a {kind.__name__}, which takes no images")
    return kind, shape[0] if shape[0] == shape[1] else None


# Cached, because the copy at the end of a run must not depend on the preset any more.
@functools.lru_cache(maxsize=4)
def _encoder_config(name: str, options: _Options, dtype_policy: str) -> dict[str, Any]:
    return _encoder(name, _load(name, options, load_weights=False)).get_config()


@functools.lru_cache(maxsize=4)
def _scale_and_offset(name: str) -> tuple[Any, Any]:
    preset = name.removeprefix(HUB_PREFIX)
    try:
        converter = _hub().layers.ImageConverter.from_preset(preset)
    except Exception as error:
        raise ValueError(
            f"KerasHub cannot load the image converter of {preset!r}, whose scale and offset the "
            f"network needs; save it with ImageConverter.save_to_preset. {error}"
        ) from error
    return (
        1.0 if converter.scale is None else converter.scale,
        0.0 if converter.offset is None else converter.offset,
    )


def _encoder(name: str, backbone: keras.Model) -> ImageEncoder:
    class_name = type(backbone).__name__
    parts = [getattr(backbone, part) for part in _PARTS_WITH_TEXT.get(class_name, ())] or [backbone]
    taken = parts[0].input
    takes_class_token = class_name in _WITH_CLASS_TOKEN
    shape = getattr(backbone.output, "shape", ())
    if len(parts) == 1 and parts[0] is backbone and len(shape) != (3 if takes_class_token else 4):
        raise ValueError(
            f"{name} is a {class_name}; the image encoders that can be used are those of "
            f"{', '.join((*_WITH_CLASS_TOKEN, *_PARTS_WITH_TEXT))}, and networks that give maps"
        )
    return ImageEncoder(
        parts,
        input_key=next(iter(taken)) if isinstance(taken, dict) else None,
        takes_class_token=takes_class_token,
        name="image_encoder",
    )
