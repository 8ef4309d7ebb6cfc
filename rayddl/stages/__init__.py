"""Floor 2: one module per stage kind, and everything that talks to Ray.

A stage turns its typed config and its input folders into an output folder. ``kinds`` lists the
kinds; ``config`` holds what a user can write for each; the module named after the kind does it.
"""
