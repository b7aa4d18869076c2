"""What a config needs on a machine that is not here: compiled ahead of time, never run."""
