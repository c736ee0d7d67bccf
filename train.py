"""Trains, evaluates and exports a classifier; `python train.py --help` says how."""

from pipelines import start

if __name__ == "__main__":
    start.run("train")
