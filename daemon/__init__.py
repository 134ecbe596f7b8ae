"""What each LockstepFS process does at its start: read the configuration, set up logging, handle signals."""
