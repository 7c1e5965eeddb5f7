"""The validation losses of runs while they trained: results/training.jsonl."""

import json
from pathlib import Path

from evaluation import results
from evaluation.results import Row

LOSSES = {"1x": "val/loss", "2x": "val/loss_2x", "4x": "val/loss_4x"}  # by context length


def read(path: Path) -> list[Row]:
    return list(results.read_lines(path, check))


def check(row: object) -> Row:
    """The row; ValueError if it is not one."""
    if not (isinstance(row, dict) and row.keys() >= {"run", "seed", "iter"}):
        raise ValueError("run, seed or iter is missing")
    return row


def condense(runs: list[str], path: Path) -> None:
    """The validation losses of finished runs, from their metrics.jsonl, into one small file."""
    rows: dict[tuple, Row] = {}
    for folder in map(Path, runs):
        for row in rows_of(folder):
            key = row["run"], row["seed"], row["iter"]
            if key in rows:
                raise ValueError(f"{folder} is a second run {row['run']} of seed {row['seed']}")
            rows[key] = row
    path.parent.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows.values())
    path.write_text(lines, encoding="utf-8")


def rows_of(folder: Path) -> list[Row]:
    """ValueError if the folder is not one of a finished run."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        metrics = (folder / "metrics.jsonl").read_bytes().splitlines()
        lines = [json.loads(line) for line in metrics]
        run = {"run": config["name"] or config["pos"], "seed": config["seed"]}
        evaluated = [line for line in lines if "val/loss" in line]
        return [run | {"iter": line["iter"]} | losses_of(line) for line in evaluated]
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{folder} is not the whole folder of a run of train.py") from None


def losses_of(line: Row) -> Row:
    return {name: round(line[name], 5) for name in LOSSES.values() if name in line}
