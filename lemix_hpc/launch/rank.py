"""`python -m mpi4py -m lemix_hpc.launch.rank RUN_DIR [ATTEMPT]`: one rank of a run."""

from __future__ import annotations

import sys

from lemix_hpc.launch.entry import run_rank

if __name__ == "__main__":
    run_rank(sys.argv[1], *map(int, sys.argv[2:]))
