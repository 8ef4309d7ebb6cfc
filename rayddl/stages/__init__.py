"""Floor 2: a folder per stage kind, what they share, and everything that talks to Ray.

A stage turns its typed settings and its input folders into an output folder. ``kinds`` lists the kinds. A kind's
folder has ``settings`` (what a user can write, what the stage produces and reads, how it is tuned) and ``stage``
(does it), and where the kind needs them ``estimate``, ``report``, ``trials`` and workers of its own. ``runtime``
is Ray; no module outside the folders names a kind.
"""
