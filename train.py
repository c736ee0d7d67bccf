"""Trains, evaluates and exports a classifier; `python train.py --help` says how."""

from pipelines.train import run

if __name__ == "__main__":
    run()
