"""The report section of ``kind: refine``: its images, as for every set of selected images."""

from rayddl.stages.picked import TINT, part, read

__all__ = ["TINT", "part", "read"]
