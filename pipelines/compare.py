"""Compares methods over several seeds, or the values of a setting, on any data set.

    python -m pipelines.compare --output_dir=DIR --methods=erm,rs,db_focal --seeds=0,1,2
    python -m pipelines.compare --output_dir=DIR --methods=db --seeds=0,1,2 --vary=beta=1,5,10,20

All other flags are those of train.py. Started again, it goes on where it was.
"""

from absl import app, flags

from pipelines.runs import compare, config
from pipelines.runs import flags as run_flags

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "For the runs and tables.", required=True)
_METHODS = flags.DEFINE_list("methods", ["erm", "rs", "db_focal"], "Methods to compare.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the repetitions.")
_VARY = flags.DEFINE_string("vary", None, "A flag and its values: name=value,value,….")
run_flags.define(config.RunConfig, without=("method", "seed", "run_dir", "export"))
flags.adopt_module_key_flags(run_flags)


def main(argv: list[str]) -> None:
    """Runs the comparison that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not all(seed.isdecimal() for seed in _SEEDS.value):
        raise app.UsageError(f"--seeds takes whole numbers; got {','.join(_SEEDS.value)}")
    try:
        runs = compare.configurations(
            run_flags.read(config.RunConfig),
            _OUTPUT_DIR.value,
            methods=_METHODS.value,
            seeds=[int(seed) for seed in _SEEDS.value],
            sweep=compare.parse_sweep(_VARY.value) if _VARY.value else None,
        )
        print(compare.compare(list(runs), _OUTPUT_DIR.value))
    except (ValueError, OSError) as error:
        raise SystemExit(f"compare: {error}") from error


if __name__ == "__main__":
    app.run(main)
