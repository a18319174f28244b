"""A Slurm cluster on one machine, each node in Linux namespaces of its own. Standard library only."""
