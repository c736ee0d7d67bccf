r"""Writes a data set as record files, or checks those that were written.

    python -m pipelines.write_shards --output_dir=DIR
    python -m pipelines.write_shards --output_dir=DIR --dataset=table --examples=FILE.csv \
        --format=tfrecord
    python -m pipelines.write_shards --output_dir=DIR --beam -- --runner=FlinkRunner
    python -m pipelines.write_shards --output_dir=DIR --verify

The same command continues a run that was stopped.
"""

from typing import TYPE_CHECKING

from absl import flags

from dbl_tf import messages
from pipelines import locations, start
from pipelines.record_formats import FORMATS
from pipelines.runs import flags as run_flags
from pipelines.runs.config import DataConfig
from pipelines.shards import EXAMPLES_PER_SHARD
from pipelines.shrinking import Settings

if TYPE_CHECKING:
    from pipelines.shards.layout import Plan
    from pipelines.shards.manifest import Manifest

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder that receives the shards.", required=True
)
_FORMAT = flags.DEFINE_enum(
    "format",
    FORMATS[0],
    FORMATS,
    "Record format: array_record is read by position, tfrecord as a stream.",
)
_EXAMPLES_PER_SHARD = flags.DEFINE_integer(
    "examples_per_shard", EXAMPLES_PER_SHARD, "Largest number of examples per shard."
)
_SHUFFLE_SEED = flags.DEFINE_integer(
    "shuffle_seed", 0, "Seed for the order of the training examples."
)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side",
    None,
    "Write JPEGs of at most this width and height, as pipelines.prepare makes them. The default "
    "keeps the bytes of the files.",
)
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Write nothing, but read every byte and compare digests."
)
_BEAM = flags.DEFINE_bool(
    "beam", False, "Write as an Apache Beam pipeline, whose options follow after --."
)
run_flags.define(DataConfig)


def main(argv: list[str]) -> None:
    """Writes or verifies the shards that the flags describe."""
    beam_options = argv[1:]
    if beam_options and not _BEAM.value:
        raise SystemExit(f"write_shards: unexpected arguments: {beam_options}")
    try:
        data_config = None
        if not _VERIFY.value:
            locations.check_output_folder(_OUTPUT_DIR.value, "--output_dir")
            data_config = run_flags.read(DataConfig)
    except ValueError as error:
        raise SystemExit(f"write_shards: {messages.explained(error)}") from error

    start.import_tensorflow()
    from dbl_tf import training

    try:
        with training.exiting_when_stopped("write_shards"):
            if data_config is None:
                verify(_OUTPUT_DIR.value)
            else:
                _write(data_config, beam_options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"write_shards: {messages.explained(error)}") from error


def _write(data_config: DataConfig, beam_options: list[str]) -> None:
    from pipelines.shards import layout, writing

    data = data_config.load_data()
    plan = layout.make_plan(
        data,
        record_format=_FORMAT.value,
        examples_per_shard=_EXAMPLES_PER_SHARD.value,
        shuffle_seed=_SHUFFLE_SEED.value,
        shrinking=None if _MAX_SIDE.value is None else Settings(max_side=_MAX_SIDE.value),
    )
    if _BEAM.value:
        manifest = _write_with_beam(data_config, plan, beam_options)
    else:
        manifest = writing.write(data, _OUTPUT_DIR.value, plan)
    print(describe(manifest))


def describe(manifest: "Manifest") -> str:
    """Describes the shards for people."""
    lines = [f"{_OUTPUT_DIR.value}: {len(manifest.plan.class_names):,} classes"]
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        lines.append(
            f"  {name}: {manifest.plan.num_examples[name]:,} images in {len(split.shards):,} "
            f"{manifest.plan.record_format} shards, {size:,.1f} MB"
        )
    return "\n".join(lines)


def verify(shards_dir: str) -> None:
    """Compares every byte of a folder of shards with its manifest.

    Raises:
        ShardsError: files differ from the manifest; the message names them.
    """
    from pipelines.shards import layout, writing
    from pipelines.shards.manifest import Manifest

    manifest = Manifest.load(shards_dir)
    problems = writing.find_problems(shards_dir, manifest)
    if problems:
        raise layout.ShardsError("\n  ".join([f"{len(problems):,} files are damaged:", *problems]))
    print(describe(manifest) + "\n  all files are as they were written")


def _write_with_beam(data_config: DataConfig, plan: "Plan", options: list[str]) -> "Manifest":
    try:
        from pipelines.shards import beam
    except ImportError as error:
        raise SystemExit(f"write_shards: --beam needs the extra `beam` ({error})") from error
    return beam.write(data_config.load_data, _OUTPUT_DIR.value, plan, options)


if __name__ == "__main__":
    run_flags.run(main)
