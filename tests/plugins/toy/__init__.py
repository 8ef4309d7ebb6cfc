"""A plugin of everything that a plugin can bring, with nothing of it in rayddl."""

import rayddl
from toy.mean.settings import MeanConfig
from toy.parts import confident, largest, stripes, tiny

plugin = rayddl.Plugin(
    name="toy",
    version="1",
    nets={"tiny": tiny},
    sources={"stripes": stripes},
    kinds=[rayddl.Kind("mean", MeanConfig)],
    selections={"largest": largest},
    losses={"confident": confident},
)
