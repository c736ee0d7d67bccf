"""A machine of a cluster that prepares three times; started by `test_cluster_preparation.py`."""

import sys
import time

from dbl_tf import training


def main(seed: str, rate: str, data: str) -> None:
    """Prints what each preparation ends in."""
    strategy = training.make_strategy("multi_worker")
    with training.preparing_together(strategy, "the first") as preparation:
        preparation.describe({"--learning_rate": rate})
    print("agreed on the first")
    try:
        with training.preparing_together(strategy, "the second") as preparation:
            preparation.describe({"--seed": seed, "--learning_rate": rate})
    except ValueError as error:
        print(f"refused: {error}")
    try:
        with training.preparing_together(strategy, "the third"):
            if data == "bad":
                raise ValueError("no data here")
            if data == "endless":
                print("reading data", flush=True)
                time.sleep(3600)
    except ValueError as error:
        print(f"refused: {error}")
    training.wait_for_all(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
