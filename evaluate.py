"""Scores a trained run or an exported model; `python evaluate.py --help` says how."""

from pipelines.evaluate import run

if __name__ == "__main__":
    run()
