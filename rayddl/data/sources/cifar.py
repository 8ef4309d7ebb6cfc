"""CIFAR-10 and CIFAR-100 in their published form, read by torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rayddl.data.config import SourceConfig
from rayddl.data.sources.refusals import place
from rayddl.errors import SourceError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source


class _Published(NamedTuple):
    folder: str
    files: tuple[str, ...]


_PUBLISHED = {
    "cifar10": _Published(
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": _Published("cifar-100-python", ("train", "test", "meta")),
}


def identity(config: SourceConfig) -> dict[str, Any]:
    """The name of the published data set; torchvision checks the files' hashes when it reads them.

    Raises :class:`SourceError` if they are missing and ``download`` is off.
    """
    root = _root(config)
    published = _PUBLISHED[config.name]
    folder = root.child(published.folder)
    missing = [name for name in published.files if not folder.has(name)]
    if missing and not config.download:
        raise SourceError(
            f"source {config.name}: not found in {place(root)}. Looked for {published.folder}/ with "
            f"{', '.join(published.files)}; missing: {', '.join(missing)}.",
            code="cifar-not-found",
            advice=f"Set source.root to the folder that holds {published.folder}, or source.download=true to fetch it "
            "there.",
        )
    return {"published": published.folder}


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Both splits in memory; missing files are downloaded if ``download`` is on."""
    import torch
    from torchvision.datasets import CIFAR10, CIFAR100

    from rayddl.data.dataset import ImageDataset, Source
    from rayddl.data.pixels.decode import fit_all

    published = CIFAR10 if config.name == "cifar10" else CIFAR100

    def split(train: bool) -> ImageDataset:
        try:
            data = published(str(_root(config).local), train=train, download=config.download)
        except (RuntimeError, OSError, EOFError) as error:
            raise SourceError(
                f"source {config.name}: the files in {config.root} cannot be used: {error}. Remove the "
                f"folder {_PUBLISHED[config.name].folder} and set source.download=true to fetch it again.",
                code="cifar-damaged",
            ) from error
        images = torch.from_numpy(fit_all(data.data, config.size)).permute(0, 3, 1, 2).contiguous()
        return ImageDataset(images, torch.tensor(data.targets, dtype=torch.int64), tuple(data.classes))

    return Source(train=split(train=True), test=split(train=False), fingerprint=fingerprint)


def _root(config: SourceConfig) -> Folder:
    if config.root is None:
        raise SourceError(
            f"source {config.name} needs source.root: the folder that holds "
            f"{_PUBLISHED[config.name].folder}, or that it is to be downloaded into (source.download=true).",
            code="cifar-without-root",
        )
    root = Folder(config.root)
    if root.local is None:
        raise SourceError(
            f"source {config.name} is read from a local folder, source.root={config.root} is not one. "
            "Copy it to a local folder, or use source.name=parquet, which reads from any URI.",
            code="cifar-root-not-local",
        )
    return root
