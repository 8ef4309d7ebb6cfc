"""One module per stage kind: what a user can write for it. Imports neither torch nor Ray."""
