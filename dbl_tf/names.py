"""The names that settings take of networks, exports and devices, for programs without Keras yet."""

# A small residual network for small images, and the absence of one where inputs are features.
SMALL_RESNET, NO_BACKBONE = "small_resnet", "none"
# Before the name of a preset of KerasHub, or of a folder of one.
HUB_PREFIX = "hub:"
# The name of the weights that a preset holds, among those that a backbone may start from.
HUB_PRESET = "preset"

# The formats of an export.
SAVED_MODEL, ONNX, LITERT = "saved_model", "onnx", "litert"

# The devices that a run trains on.
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


def is_hub(backbone: str | None) -> bool:
    """Whether the name of a backbone is that of a network of KerasHub."""
    return backbone is not None and backbone.startswith(HUB_PREFIX)
