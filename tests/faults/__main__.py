"""`python -m tests.faults [KILLS] [SEED]`: kills trainings so often, continues them, and prints the tally as JSON."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from tests.faults.harness import tally

if __name__ == "__main__":
    kills, seed = (int(word) for word in (sys.argv[1:] + ["500", "0"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as folder:
        result = tally(kills, seed, Path(folder), say=lambda text: print(text, file=sys.stderr, flush=True))
    print(result.to_json())
    sys.exit(bool(result.deviations))
