"""How far two selections of RDED agree, as with ``scoring: published`` and ``scoring: native``.

    uv run python -m tests.bench.agreement FOLDER_OF_ONE OTHER_FOLDER [--looked-at 300]

The folders are those of two rded stages over the same source with the same seed, so that both chose among the
same crops. A figure is a mean over classes, beside what drawing at random would have in common.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from tests.bench import machine


def winners(folder: str) -> dict[str, dict[str, int]]:
    """The crop chosen of each chosen image, by class."""
    found: dict[str, dict[str, int]] = {}
    table = pq.read_table(Path(folder) / "winners.parquet", columns=["class", "image", "crop"])
    for row in table.to_pylist():
        found.setdefault(row["class"], {})[row["image"]] = row["crop"]
    return found


def agreement(one: dict[str, dict[str, int]], other: dict[str, dict[str, int]]) -> dict[str, float]:
    """Shares of one selection that are in the other too: images, and images with the same crop."""
    if one.keys() != other.keys():
        raise SystemExit("the two selections have other classes: compare stages over the same source")
    images, crops = [], []
    for name, mine in one.items():
        theirs = other[name]
        images.append(sum(image in theirs for image in mine) / len(mine))
        crops.append(sum(theirs.get(image) == crop for image, crop in mine.items()) / len(mine))
    return {"images": sum(images) / len(images), "crops": sum(crops) / len(crops)}


def main() -> None:
    """Print a table."""
    parser = machine.parser(__doc__)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--looked-at", type=int, default=300, help="images of each class (mipc)")
    parser.add_argument("--crops", type=int, default=5, help="crops of each image (num_crops)")
    given = parser.parse_args()
    one, other = winners(given.one), winners(given.other)
    share = agreement(one, other)
    chosen = sum(map(len, other.values())) / len(other)
    chance = chosen / given.looked_at
    rows = [
        {"in common": "images", "share": f"{share['images']:.1%}", "at random": f"{chance:.1%}"},
        {"in common": "image and crop", "share": f"{share['crops']:.1%}",
         "at random": f"{chance / given.crops:.1%}"},
    ]  # fmt: skip
    print(f"{len(one)} classes, {chosen:.0f} patches chosen in each of {given.looked_at} images")
    print(machine.table(rows))


if __name__ == "__main__":
    main()
