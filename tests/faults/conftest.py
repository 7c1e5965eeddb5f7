"""What the tests of faults share: the figures of the long ones are kept."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

FIGURES = Path(__file__).parent.parent.parent / "results" / "faults.json"


@pytest.fixture
def record(request) -> Callable[..., None]:
    """`record(name, **figures)`: put a soak test's figures into results/faults.json.

    The same call in a test of the default suite writes nothing: its numbers are of a short run.
    """

    def keep(name: str, **figures) -> None:
        if request.node.get_closest_marker("soak") is None:
            return
        known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        text = json.dumps(known | {name: figures}, indent=1, sort_keys=True, allow_nan=False)
        fresh = FIGURES.with_suffix(".tmp")
        fresh.write_text(text + "\n")
        os.replace(fresh, FIGURES)

    return keep
