"""``kind: mean``: the mean image of each class."""
