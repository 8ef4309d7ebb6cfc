"""A network, a source, a selection and a loss."""

import torch
from torch import nn
from torch.nn import functional as F

import rayddl


def tiny(num_classes, channels, size):
    """A linear classifier of pooled images."""
    side = size // 2
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels * side * side, num_classes))


class Stripes(torch.utils.data.Dataset):
    """Grey images of 8 x 8 pixels with noise, with stripes of two pixels one way or the other."""

    classes = ("rows", "columns")

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        base = (torch.arange(8) // 2 % 2).float().expand(8, 8)
        noise = torch.rand(count, 8, 8, generator=generator)
        self.images = [0.6 * (base.T if i % 2 == 0 else base) + 0.4 * noise[i] for i in range(count)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index][None], index % 2


def stripes(source):
    """Both splits."""
    del source
    return rayddl.Splits(Stripes(60, 0), Stripes(40, 1))


def largest(features, count):
    """The rows of the largest norm."""
    return features.norm(dim=1).topk(count).indices


def confident(student_logits, teacher_logits):
    """The cross-entropy to what the teacher holds likeliest."""
    return F.cross_entropy(student_logits, teacher_logits.argmax(1))
