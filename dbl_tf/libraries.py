"""Which library a tensor belongs to, and whether it has values yet.

Imports none of them: where a tensor belongs to a library, the library is imported.
"""

import sys
from typing import Any


def library_of(tensor: Any) -> str:
    """Returns the name of the library whose type a tensor is: "tensorflow", "jax", "torch", …"""
    return type(tensor).__module__.partition(".")[0].removesuffix("lib")  # jaxlib is JAX's


def is_traced(tensor: Any) -> bool:
    """Whether a tensor stands for values that a function will have once it has been traced."""
    library = library_of(tensor)
    if library == "tensorflow":
        return sys.modules["tensorflow"].is_symbolic_tensor(tensor)
    if library == "jax":
        return isinstance(tensor, sys.modules["jax"].core.Tracer)
    if library == "torch":
        return tensor.device.type == "meta" or sys.modules["torch"].compiler.is_compiling()
    return False
