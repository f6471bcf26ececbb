"""Planning: trajectories as tokens, plans by guided sampling, and controllers that carry them out."""
