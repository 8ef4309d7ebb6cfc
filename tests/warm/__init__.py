"""What has Ray's workers forked instead of started anew, in every process below the tests: see ``sitecustomize``."""

import os
from pathlib import Path

FOLDER = str(Path(__file__).parent)
SWITCH = "RAYDDL_TEST_WARM"


def python_path(*more: str) -> str:
    """The variable PYTHONPATH, with ``more`` folders, for a program that may start a node."""
    first = [] if os.environ.get(SWITCH) == "0" else [FOLDER]
    return os.pathsep.join([*first, *(path for path in more if path and path != FOLDER)])
