"""The two released code lines: reading their checkpoints, their configurations, and the RNN line's rollout as an oracle."""
