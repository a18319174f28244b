"""Run by test_extending.py, `RUN_DIR FOLDER ENTRY`: one rank of a run, as `lemix_hpc.launch.local_rank`, with one engine more.

FOLDER holds its module, as a second place of `lemix_hpc.engines`; ENTRY is its line in the registry.
"""

import sys

import lemix_hpc.engines
from lemix_hpc.config.engine_kinds import ENGINE_KINDS, EngineKind
from lemix_hpc.launch.entry import run_rank

run_dir, folder, entry = sys.argv[1:]
lemix_hpc.engines.__path__.append(folder)
ENGINE_KINDS.update(eval(f"{{{entry}}}", {"EngineKind": EngineKind}))  # type: ignore[attr-defined]
run_rank(run_dir)
