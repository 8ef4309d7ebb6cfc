"""The settings that selecting crops (RDED) needs for given images."""

from __future__ import annotations

from rayddl.stages.drafting import LARGEST_MATCHED, Draft, DraftRequest, convnet, key

TEACHER_STEPS, SCORED = 1500, 300
STUDENTS = 3
SIZES = (32, 64, 128, 224)


def suits(request: DraftRequest) -> tuple[int, str]:
    """For all images; the first choice for large ones, many classes, and many images without a GPU."""
    del request
    return 1, "crops of real images, in minutes, for all sizes and numbers of classes"


def draft(request: DraftRequest) -> Draft:
    """The observer, the crops, their evaluation with its soft labels."""
    contents, side = request.contents, request.side(SIZES)
    factor = 2 if side > LARGEST_MATCHED else 1
    ipc, batch = request.per_class(factor**2), request.batch(128)
    net = (
        {"name": "resnet18", "norm": "batch"}
        if side > 128
        else convnet(side, 128 if request.gpu else 64, norm="batch")
    )
    steps = -(-contents.images // batch)
    epochs = max(20, min(300, -(-TEACHER_STEPS // steps)))
    augment = "none" if contents.grey else "crop_flip"
    lines = (
        "  teacher:                        # the observer: it scores the crops and gives the soft labels",
        "    kind: teacher",
        key("net", net),
        key("epochs", epochs, f"{epochs * steps:,} steps"),
        key("batch", batch, f"{steps} steps an epoch"),
        key("augment", augment),
        *request.precision(),
        "  distill:",
        f"    kind: rded                    # {suits(request)[1]}",
        "    teacher: teacher",
        key("ipc", ipc, f"images per class; the smallest class has {min(contents.train):,} training images"),
        key("factor", factor, "patches along one side of an image"),
        key(
            "mipc",
            max(factor**2 * ipc, min(SCORED, max(contents.train))),
            "real images per class that are looked at",
        ),
        "  evaluate:                       # students of the set, and of as many random real images",
        "    kind: evaluate",
        "    set: distill",
        "    observer: teacher",
        key("seeds", STUDENTS),
        key("epochs", request.student_epochs(ipc * len(contents.classes))),
        *request.precision(),
    )
    return Draft(ipc, side, lines)
