"""Serving and training side by side: in simulated time, then with real ranks on this machine. Cell by cell, or whole:

python examples/study.py
"""

# %% A recipe, and what it is changed to
from pathlib import Path

import lemix_hpc as lx

RECIPE = Path(__file__).parents[1] / "recipes" / "emulated-a100.yaml"
SMALL = {"nodes.count": 2, "nodes.stages": 1, "serving.source.duration_s": 4, "serving.source.rate": 6}

recipe = lx.load(RECIPE, SMALL)
print(recipe.recipe.name, "on", recipe.recipe.nodes.count, "nodes")

# %% The same load in simulated time
simulated = lx.simulate(recipe)
print("tasks/s, simulated:", round(simulated.summary["throughput"]["per_makespan"], 2))

# %% Which placement does most with it?
for row in lx.compare(recipe, policies=["separate", "least-completion"], split=1, rates=[4, 8]):
    print(
        f"{row.policy:17} {row.rate:g}/s: {row.means['throughput']:.2f} tasks/s, {row.ratios['throughput']:.2f} of separate's"
    )

# %% A run: MPI ranks on this machine, with stages that take as long as an A100 would
run = lx.run(recipe, cluster="local")
report = run.report()
print(run.id, "took", round(report["duration_s"], 1), "s; tasks/s:", round(report["throughput"]["per_makespan"], 2))

# %% One by one; `pandas.DataFrame(requests)` makes a table of them
requests = lx.rows(run.requests())
slowest = max(requests, key=lambda row: row["finished"] - row["arrival"])
print(len(requests), "requests; the slowest one is", slowest["id"], "with", slowest["prompt_tokens"], "tokens")
