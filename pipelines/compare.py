"""Compares methods over several seeds, or values of a setting, on any data set.

    python -m pipelines.compare --output_dir=DIR --methods=erm,rs,db_focal --seeds=0,1,2
    python -m pipelines.compare --output_dir=DIR --methods=db --seeds=0,1,2 --vary=beta=1,5,10,20

All other flags are those of train.py. The same command continues a comparison that was stopped.
"""

from absl import app, flags

from pipelines.runs import compare
from pipelines.runs import flags as run_flags
from pipelines.runs.config import RunConfig

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Directory for the runs and tables.", required=True
)
_METHODS = flags.DEFINE_list("methods", ["erm", "rs", "db_focal"], "Methods to compare.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the runs of each method.")
_VARY = flags.DEFINE_string(
    "vary",
    None,
    "A flag and the values to compare: name=value,value,…. Values that are lists are separated by "
    "semicolons.",
)
run_flags.define(RunConfig, without=("method", "seed", "run_dir"), defaults={"export": False})


def main(argv: list[str]) -> None:
    """Runs the comparison that the flags describe."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {argv[1:]}")
        if not all(seed.isdecimal() for seed in _SEEDS.value):
            raise ValueError(f"--seeds takes whole numbers; got {','.join(_SEEDS.value)}")
        runs = compare.configurations(
            run_flags.read(RunConfig),
            _OUTPUT_DIR.value,
            methods=_METHODS.value,
            seeds=[int(seed) for seed in _SEEDS.value],
            sweep=compare.parse_sweep(_VARY.value) if _VARY.value else None,
        )
        print(compare.compare(list(runs), _OUTPUT_DIR.value))
    except (ValueError, OSError) as error:
        raise SystemExit(f"compare: {error}") from error


if __name__ == "__main__":
    app.run(main, flags_parser=run_flags.parse)
