"""The base of every setting a user can write down."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    Field names are the keys of a definition file. Importing a config never imports torch or Ray, so
    that ``rayddl plan`` answers at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
