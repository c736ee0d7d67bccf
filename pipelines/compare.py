"""Compares methods over several seeds, or values of a setting, on any data set.

    python -m pipelines.compare --output_dir=DIR --methods=erm,rs,db_focal
    python -m pipelines.compare --output_dir=DIR --methods=db --vary=beta=1,5,10,20
    python -m pipelines.compare --output_dir=DIR --on=test --seeds=0,1,2

Methods and settings are chosen on --on=cv, which trains each on all but one of the --folds of the
training split and judges it on that one, or on --on=val; test is what the choice is reported on.
All other flags are those of train.py. The same command continues a comparison that was stopped.
"""

from absl import flags

from dbl_tf import messages
from pipelines import locations, start
from pipelines.runs import flags as run_flags
from pipelines.runs.config import JUDGES, RunConfig

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Directory for the runs and tables.", required=True
)
_METHODS = flags.DEFINE_list("methods", ["erm", "rs", "db_focal"], "Methods to compare.")
_SEEDS = flags.DEFINE_list(
    "seeds",
    None,
    "Seeds of the runs of each method. The default is 0 for cv, and 0,1,2 for val and test.",
)
_ON = flags.DEFINE_enum(
    "on",
    "cv",
    JUDGES,
    "What the runs are judged on: each of the --folds of the training split in turn (cv), the val "
    "split or the test split.",
)
_VARY = flags.DEFINE_string(
    "vary",
    None,
    "A flag and the values to compare: name=value,value,…. Values that are lists are separated by "
    "semicolons.",
)
run_flags.define(
    RunConfig, without=("method", "seed", "run_dir", "held_out"), defaults={"export": False}
)


def main(argv: list[str]) -> None:
    """Runs the comparison that the flags describe."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {argv[1:]}")
        locations.check_output_folder(_OUTPUT_DIR.value, "--output_dir")
        seeds = _SEEDS.value or (["0"] if _ON.value == "cv" else ["0", "1", "2"])
        if not all(seed.isdecimal() for seed in seeds):
            raise ValueError(f"--seeds takes whole numbers; got {','.join(seeds)}")
        template = run_flags.read(RunConfig)
    except ValueError as error:
        raise SystemExit(f"compare: {messages.explained(error)}") from error

    start.import_tensorflow()
    from dbl_tf import training
    from pipelines.runs import compare

    try:
        runs = compare.configurations(
            template,
            _OUTPUT_DIR.value,
            methods=_METHODS.value,
            seeds=[int(seed) for seed in seeds],
            on=_ON.value,
            sweep=compare.parse_sweep(_VARY.value) if _VARY.value else None,
        )
        with training.exiting_when_stopped("compare"):
            print(compare.compare(list(runs), _OUTPUT_DIR.value))
    except (ValueError, OSError) as error:
        raise SystemExit(f"compare: {messages.explained(error)}") from error


def run() -> None:
    """Runs the command with the flags of the command line."""
    run_flags.run(main)


if __name__ == "__main__":
    run()
