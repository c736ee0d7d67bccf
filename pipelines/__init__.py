"""From labeled images on disk to `tf.data` batches of (image, labels, weights)."""

from typing import Any

# Modules of earlier versions, and where their contents are now.
_MOVED = {
    "comparison_run": "pipelines.runs.compare",
    "config": "pipelines.runs.config",
    "config_flags": "pipelines.runs.flags",
    "evaluation_run": "pipelines.runs.evaluate",
    "features": "pipelines.runs.features",
    "problems": "pipelines.findings",
    "run_parts": "pipelines.runs.build",
    "run_report": "pipelines.runs.report",
    "scored": "pipelines.runs.scores",
    "training_run": "pipelines.runs.train",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        raise ImportError(f"pipelines.{name} has moved to {_MOVED[name]}; see CHANGELOG.md")
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
