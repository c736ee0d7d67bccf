"""Presets of KerasHub: small random networks of several families, with their preprocessing."""

import pathlib

import keras

SIDE = 32
_SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
FAMILIES = ("vit", "dinov2", "dinov3", "siglip", "clip", "resnet")


def save(family: str, folder: pathlib.Path) -> None:
    """Writes a network and its image converter as KerasHub's own presets are."""
    from keras_hub import layers, models

    keras.utils.set_random_seed(7)
    shape = (SIDE, SIDE, 3)
    converter = {"image_size": (SIDE, SIDE), "scale": [1 / 58, 1 / 57, 1 / 57]}
    converter["offset"] = [-2.1, -2.0, -1.8]
    if family == "vit":
        network = models.ViTBackbone(image_shape=shape, patch_size=8, mlp_dim=32, **_SIZES)
        kind = layers.ViTImageConverter
    elif family == "dinov2":
        network = models.DINOV2Backbone(
            patch_size=8,
            intermediate_dim=32,
            image_shape=shape,
            position_embedding_shape=(2 * SIDE, 2 * SIDE, 3),
            **_SIZES,
        )
        kind = layers.DINOV2ImageConverter
    elif family == "dinov3":
        network = models.DINOV3Backbone(
            patch_size=8, intermediate_dim=32, image_shape=shape, **_SIZES
        )
        kind = layers.DINOV3ImageConverter
    elif family == "siglip":
        network = models.SigLIPBackbone(*_encoders("siglip", "SigLIP"))
        kind = layers.SigLIPImageConverter
    elif family == "clip":
        network = models.CLIPBackbone(*_encoders("clip", "CLIP"), projection_dim=12)
        kind = layers.CLIPImageConverter
    else:
        network = models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[3],
            stackwise_num_filters=[64, 64],
            stackwise_num_blocks=[1, 1],
            stackwise_num_strides=[1, 2],
            block_type="basic_block",
            image_shape=(None, None, 3),
        )
        kind = layers.ResNetImageConverter
    network.save_to_preset(str(folder))
    kind(**converter).save_to_preset(str(folder))


def _encoders(module: str, prefix: str) -> tuple[keras.Model, keras.Model]:
    """The two encoders of a network for images and texts, which KerasHub exports under no name."""
    import importlib

    def found(part: str) -> type:
        place = f"keras_hub.src.models.{module}.{module}_{part}_encoder"
        return getattr(importlib.import_module(place), f"{prefix}{part.title()}Encoder")

    sizes = {"intermediate_dim": 32, **_SIZES}
    text = {"vocabulary_size": 50, "embedding_dim": 16, "max_sequence_length": 8}
    return (
        found("vision")(patch_size=8, image_shape=(SIDE, SIDE, 3), **sizes),
        found("text")(**text, **sizes),
    )
