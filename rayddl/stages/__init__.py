"""The stage floor: one folder per stage kind, the code that all kinds share, and all code that uses Ray.

A stage turns its typed settings and its input folders into an output folder. ``kinds`` lists the kinds. A kind's
folder has ``settings`` (keys of the definition, what the stage produces and reads, how it is tuned) and ``stage``
(its run function), and where needed ``estimate``, ``report``, ``trials`` and worker modules. ``runtime`` wraps Ray.
No module outside the folders names a kind.
"""
