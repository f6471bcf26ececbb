"""From the command line to a run: the only room that imports Hydra.

`cli.main` is the entry; `usage` has what --help prints. `compose` parses the command line, merges it with the yaml
files and turns each section into a typed dataclass, and `run` checks everything, builds the parts and runs the tasks.
`slurm` submits a run as a job instead.
"""
