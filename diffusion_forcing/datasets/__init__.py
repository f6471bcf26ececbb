"""Data sets: what yields `SequenceBatch`es of steps in a maze, and where those steps come from (generated, D4RL, Minari)."""
