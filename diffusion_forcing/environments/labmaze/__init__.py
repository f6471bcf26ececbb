"""Random mazes of DeepMind Lab's kind, rendered by ViZDoom."""
