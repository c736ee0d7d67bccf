"""What operation a tensor comes from, as far as its backend lets it be seen.

A loss sees the outputs of a model and not the model. TensorFlow's and JAX's tracing and PyTorch's
gradients keep the operation that each tensor comes from, and the first two the name of its layer.

Only `tf.Tensor.op` is documented. The attributes of tracers of JAX 0.10 and the names of PyTorch's
gradient functions are not; in versions that have others, nothing is seen.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from dbl_tf.libraries import is_traced, library_of

# Operations that keep the values, by their names in TensorFlow, JAX and PyTorch.
_KEEPING = frozenset(
    {"Cast", "EnsureShape", "ExpandDims", "Identity", "Reshape", "Squeeze", "StopGradient"}
    | {"convert_element_type", "copy", "expand_dims", "reshape", "squeeze", "stop_gradient"}
    | {"Alias", "Clone", "ReshapeAlias", "ToCopy", "Unsqueeze", "UnsafeView", "View"}
)
_PRODUCTS = frozenset({"MatMul", "dot_general", "Addmm", "Mm"})
_SUMS = frozenset({"AddV2", "BiasAdd", "add", "Add"})
_SIGMOIDS = frozenset({"Sigmoid", "logistic"})
_MOST_STEPS = 16


@dataclasses.dataclass(frozen=True)
class Producer:
    """What a tensor comes from.

    Attributes:
        activation: "sigmoid", "softmax", or "linear" for a product with weights, plus a bias.
        layer: the layer, or the path of layers, as the backend spells it; None if it is unknown.
    """

    activation: str
    layer: str | None


class _Operation(NamedTuple):
    """An operation of a backend: its name, what its inputs come from, and the path of its layer."""

    name: str
    inputs: Sequence[Any]
    layer: str | None


def producer_of(tensor: Any) -> Producer | None:
    """Finds the sigmoid, the softmax or the linear layer whose values a tensor holds.

    Args:
        tensor: a tensor of any backend, of an eager computation or while a function is traced.

    Returns:
        The producer; None if it is another operation, or not to be seen.
    """
    node, layer, is_shifted = tensor, None, False
    for _ in range(_MOST_STEPS):
        operation = _operation(node)
        if operation is None:
            break
        layer = layer or operation.layer
        if operation.name in _PRODUCTS:
            return Producer("linear", layer)
        if operation.name in _SUMS:
            is_shifted = True
        elif is_shifted and operation.name not in _KEEPING:
            return None  # a sum of something else, such as of probabilities
        elif operation.name in _SIGMOIDS:
            return Producer("sigmoid", operation.layer)
        elif operation.name == "Softmax" or _is_softmax_of_jax(operation):
            return Producer("softmax", operation.layer)
        elif operation.name not in _KEEPING:
            return None
        if not operation.inputs:
            return None
        node = operation.inputs[0]
    # Keras puts the logits on what its own activations return, which serves eager computations.
    logits = getattr(tensor, "_keras_logits", None)
    return None if logits is None else Producer("sigmoid or softmax", None)


def known_values(tensor: Any) -> np.ndarray | None:
    """Returns the values of a tensor in float32; None while a function is traced."""
    if isinstance(tensor, keras.KerasTensor):
        return None
    tensor = _primal(tensor)
    if is_traced(tensor):
        return None
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(tensor)), np.float32)


def _operation(node: Any) -> _Operation | None:
    """The operation of a tensor of TensorFlow or JAX, or of a gradient function of PyTorch."""
    if library_of(node) == "tensorflow":
        return _operation_of_tensorflow(node)
    if library_of(node) == "jax":
        return _operation_of_jax(_primal(node))
    if library_of(node) == "torch":
        node = node.grad_fn
    return _operation_of_torch(node) if hasattr(node, "next_functions") else None


def _operation_of_tensorflow(tensor: Any) -> _Operation | None:
    if not is_traced(tensor):
        return None
    path, _, _ = tensor.op.name.rpartition("/")
    return _Operation(tensor.op.type, list(tensor.op.inputs), path or None)


def _operation_of_jax(tracer: Any) -> _Operation | None:
    equation: Any = getattr(tracer, "parent", None)
    if not hasattr(equation, "in_tracers"):
        return None
    # The name of a layer that is differentiated is "jvp(name)".
    path = re.sub(r"\w+\(([^()]*)\)", r"\1", str(equation.source_info.name_stack))
    name = equation.primitive.name
    if name == "dot_general" and any(equation.params["dimension_numbers"][1]):
        name = "batched_product"  # such as a mean of probabilities, weighted by each example
    return _Operation(name, equation.in_tracers, path or None)


def _operation_of_torch(gradient: Any) -> _Operation:
    name = re.sub(r"Backward\d*$", "", gradient.name())
    return _Operation(name, [function for function, _ in gradient.next_functions], None)


def _is_softmax_of_jax(operation: _Operation) -> bool:
    """Whether e^z is divided by a sum of e^z."""
    if operation.name != "div" or len(operation.inputs) != 2:
        return False
    numerator, denominator = (_operation(node) for node in operation.inputs)
    if denominator is not None and denominator.name == "broadcast_in_dim":
        denominator = _operation(denominator.inputs[0])
    names = [part.name for part in (numerator, denominator) if part is not None]
    return names == ["exp", "reduce_sum"]


def _primal(tensor: Any) -> Any:
    """The value that a tracer of JAX differentiates."""
    while library_of(tensor) == "jax" and hasattr(tensor, "primal"):
        tensor = tensor.primal
    return tensor
