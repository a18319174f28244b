"""`python -m mpi4py -m lemix_hpc.probe DIR`: one rank of a doctor's job."""

from __future__ import annotations

import sys
from pathlib import Path

from lemix_hpc.probe.main import probe

if __name__ == "__main__":
    probe(Path(sys.argv[1]))
