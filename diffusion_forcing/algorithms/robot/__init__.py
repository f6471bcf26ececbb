"""Robot imitation: camera images and actions predicted together, by a network with memory."""
