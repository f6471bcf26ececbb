"""From a command line to a run: the only room that knows Hydra.

`overrides` reads the command line, `compose` turns it and the yaml files into one mapping, `options` turns a mapping into typed
frozen dataclasses, `run` builds every part once, top-down, and steps aside. `cli.main` is the entry.
"""
