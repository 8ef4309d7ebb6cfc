"""What images are compared by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayddl.data.pixels import space
from rayddl.methods.selection.features import Features, before_last
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig

SHAPE = (1, 8, 8)


def images(count: int) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *SHAPE), generator=draws, dtype=torch.uint8)


FITTED = space.fit("normalise", images(50))


def network() -> Features:
    config = NetConfig(depth=2, width=4)
    return Features(FITTED.encode, build(config, SHAPE, 3, seed=0).requires_grad_(False).eval())


def test_pixels_are_compared_in_model_space() -> None:
    """Without a network the features are the encoded pixels."""
    assert torch.equal(Features(FITTED.encode)(images(5)), FITTED.encode(images(5)).flatten(1))
    assert Features(FITTED.encode).width(SHAPE) == 64


@pytest.mark.parametrize("count", [1, 127, 128, 300])
def test_features_do_not_depend_on_their_company(count: int) -> None:
    """An image's features are the same bits in a batch of any size."""
    features = network()
    whole = features(images(300))

    assert torch.equal(features(images(300)[:count]), whole[:count])


@pytest.mark.parametrize("name", ["convnet", "alexnet", "resnet18", "mlp"])
def test_a_networks_last_layer_makes_logits_of_its_features(name: str) -> None:
    """The last linear layer, applied to the features, gives what the network gives."""
    norm = {"norm": "batch"} if name == "resnet18" else {}
    net = build(NetConfig(name=name, **norm), SHAPE, 3, seed=0).requires_grad_(False).eval()
    x = FITTED.encode(images(4))
    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]

    assert torch.equal(last(before_last(net, x)), net(x))
    assert not last._forward_pre_hooks
