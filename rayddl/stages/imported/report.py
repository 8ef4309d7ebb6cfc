"""``kind: imported`` on the page: its images, as any set that is picked."""

from rayddl.stages.picked import TINT, part, read

__all__ = ["TINT", "part", "read"]
