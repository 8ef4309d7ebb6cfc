"""What a user can say about a network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rayddl.config import Config

Norm = Literal["instance", "batch", "group", "none"]


class NetConfig(Config):
    """A network by name. In a definition, ``net: convnet`` is short for ``net: {name: convnet}``."""

    name: Literal["convnet"] = "convnet"
    depth: int = Field(default=3, ge=1, le=7)
    """Convolution blocks; each halves the side."""
    width: int = Field(default=128, ge=1)
    """Channels of every block."""
    norm: Norm = "instance"

    @property
    def label(self) -> str:
        """What tables and charts call the network: its name and what differs from the default."""
        default = type(self)()
        parts = [f"d{self.depth}" if self.depth != default.depth else ""]
        parts.append(f"w{self.width}" if self.width != default.width else "")
        parts.append(self.norm if self.norm != default.norm else "")
        return "-".join([self.name, *(p for p in parts if p)])

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
