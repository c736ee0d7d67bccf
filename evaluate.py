"""Scores a trained run or an exported model; `python evaluate.py --help` says how."""

from pipelines import start

if __name__ == "__main__":
    start.run("evaluate")
