"""The `lockstep` command: local clusters, mounting, status, the demonstration."""
