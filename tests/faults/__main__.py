"""`python -m tests.faults [KILLS] [SEED]`: kills and continues trainings; prints the tally as JSON."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from tests.faults.harness import tally

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Kill trainings, and continue them.")
    parser.add_argument("kills", type=int, nargs="?", default=500)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = tally(words.kills, words.seed, Path(folder), say=lambda text: print(text, file=sys.stderr, flush=True))
    print(result.to_json())
    sys.exit(bool(result.deviations))
