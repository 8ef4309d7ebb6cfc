"""The settings of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from rayddl import plugins
from rayddl.config import Config, Registered

Norm = Literal["instance", "batch", "group", "none"]
NORMS: Mapping[str, tuple[Norm, ...]] = {
    "convnet": ("instance", "batch", "group", "none"),
    "alexnet": ("none", "instance", "batch", "group"),
    "vgg11": ("instance", "batch", "group", "none"),
    "resnet18": ("instance", "batch", "group", "none"),
    "lenet": ("none",),
    "mlp": ("none",),
    "tv_resnet18": ("batch",),
    "tv_resnet50": ("batch",),
    "tv_resnet101": ("batch",),
    "tv_mobilenet_v2": ("batch",),
    "tv_efficientnet_b0": ("batch",),
    # The layer norms of transformers are part of their blocks.
    "tv_vit_b_16": ("none",),
    "tv_swin_v2_t": ("none",),
}
"""The norms that each network can have; the first is the literature's choice and the default."""
plugins.shipped("nets", NORMS)
SIZED = ("convnet", "mlp")
"""Networks whose depth and width can be set."""


def norms_of(name: str) -> tuple[Norm, ...]:
    """The norms that a network can have. Norms of plugins' networks cannot be set."""
    return NORMS.get(name, ("none",))


def _or_a_name(schema: dict[str, Any]) -> None:
    """Add the short form to the JSON Schema."""
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [whole, {"type": "string"}]


SMALLEST = {"alexnet": 8, "lenet": 16, "vgg11": 32}
"""The least side in pixels of images that a network takes; 28 counts as 32, to which it is padded."""


class NetConfig(Config):
    """A network by name. In a definition, ``net: vgg11`` is short for ``net: {name: vgg11}``.

    The first six are the small networks of the distillation literature's cross-architecture tables;
    ``tv_*`` are torchvision's, made for large colour images, as torchvision builds them. Plugins add others.
    """

    model_config = ConfigDict(json_schema_extra=_or_a_name)

    name: Annotated[str, Registered("nets")] = "convnet"
    """The architecture."""
    depth: int = Field(default=3, ge=1, le=7)
    """``convnet``: convolution blocks; each halves the side. ``mlp``: linear layers."""
    width: int = Field(default=128, ge=1)
    """``convnet``: channels of every block. ``mlp``: hidden units of every layer but the last."""
    norm: Norm = "instance"
    """Default: what the literature gives the network; ``instance`` for ``convnet``, ``vgg11`` and
    ``resnet18``, ``batch`` for torchvision's convolutional networks, ``none`` for the others."""

    @property
    def label(self) -> str:
        """The network's name in tables and charts, with the settings that differ from the default."""
        default = type(self)()
        parts = [f"d{self.depth}" if self.depth != default.depth else ""]
        parts.append(f"w{self.width}" if self.width != default.width else "")
        parts.append(self.norm if self.norm != norms_of(self.name)[0] else "")
        return "-".join([self.name, *(p for p in parts if p)])

    @property
    def smallest(self) -> int:
        """The least side in pixels of images that the network takes, as far as it is known without building it."""
        if self.name == "resnet18" and self.norm == "instance":
            return 9  # smaller images end as single pixels, which instance norm makes constant
        return 2**self.depth if self.name == "convnet" else SMALLEST.get(self.name, 1)

    def takes(self, height: int, width: int) -> bool:
        """False if images of this size are too small for the network."""
        side = max(height, width) if self.name == "resnet18" else min(height, width)
        return (32 if (height, width) == (28, 28) else side) >= self.smallest

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and "norm" not in value:
            name = value.get("name")
            if isinstance(name, str) and name != "convnet":
                return {**value, "norm": norms_of(name)[0]}
        return value

    @model_validator(mode="after")
    def _fits_the_name(self) -> NetConfig:
        norms, default = norms_of(self.name), NetConfig.model_fields
        if self.norm not in norms:
            raise ValueError(
                f"{self.name} cannot have norm {self.norm!r}; it has {', '.join(map(repr, norms))}"
                + (": leave norm out" if len(norms) == 1 else "")
            )
        for key in ("depth", "width"):
            if self.name not in SIZED and getattr(self, key) != default[key].default:
                raise ValueError(
                    f"the {key} of {self.name} is fixed: leave {key} out (it belongs to {' and '.join(SIZED)})"
                )
        return self
