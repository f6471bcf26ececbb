"""D4RL's point mazes: maps, physics, the Gymnasium environment, vectorised play, and the data-collecting controller."""
