"""The metadata service: a group member, a deterministic file system state machine, and a session server."""
