"""The settings that matching trajectories (MCT) needs for given images."""

from __future__ import annotations

from rayddl.data.config import DSA
from rayddl.stages.drafting import LARGEST_MATCHED, Draft, DraftRequest, convnet, key
from rayddl.stages.match.fitting import windows

ALSO_CALLED = ("mtt", "mct")
"""Names of the methods in papers, which ``rayddl init --method`` takes for the kind's."""
EXPERTS, EXPERT_STEPS = 8, 600
ITERATIONS, SYN_STEPS, STUDENTS = 300, 20, 5
STUDENT_BATCH = {False: 64, True: 500}
"""Most images of the set in a student's step, by whether there is a GPU: more take too long there."""
ON_A_CPU = 5_000
"""Training images up to which a CPU suffices."""
CLASSES = 200


def suits(request: DraftRequest) -> tuple[int, str]:
    """First choice for small images of a few classes, with a GPU or few of them."""
    contents = request.contents
    fits = _side(request) <= LARGEST_MATCHED and len(contents.classes) <= CLASSES
    able = request.gpu or contents.images <= ON_A_CPU
    return (
        2 if fits and able else 0
    ), f"matching trajectories (MCT): the best sets at up to {LARGEST_MATCHED} pixels"


def draft(request: DraftRequest) -> Draft:
    """Experts, the matching, its evaluation."""
    contents, side, ipc = request.contents, _side(request), request.per_class()
    net, batch = convnet(side, 128 if request.gpu else 32), request.batch(256)
    steps = -(-contents.images // batch)
    window, starts = (round(each) for each in windows(steps))
    epochs = max(20, -(-EXPERT_STEPS // steps), window + starts)
    augment = "none" if contents.grey else DSA
    made, most = ipc * len(contents.classes), STUDENT_BATCH[request.gpu]
    students = request.student_epochs(made)
    lines = (
        "  experts:                        # networks trained on the real images",
        "    kind: experts",
        key("net", net),
        key("count", EXPERTS, "more of them, up to 100, make better sets"),
        key("epochs", epochs, f"{epochs * steps:,} steps"),
        key("batch", batch, f"{steps} steps an epoch"),
        key("lr", 0.02),
        key("augment", augment),
        "  distill:                        # the set whose students follow the experts",
        f"    kind: match                   # {suits(request)[1]}",
        "    experts: experts",
        "    trajectory: convex            # MCT; `snapshots` is MTT and needs experts with keep: all",
        key("ipc", ipc, f"images per class; the smallest class has {min(contents.train):,} training images"),
        key("iterations", ITERATIONS, "more of them make better sets"),
        key("syn_steps", SYN_STEPS),
        *(
            [key("batch_syn", most, f"of {made} images in a step, so that it takes less time")]
            if made > most
            else []
        ),
        key("expert_epochs", window, f"{window * steps} steps of an expert"),
        key("max_start_epoch", starts),
        key("lr_image", 300, "lower it if the loss rises, raise it if it does not fall"),
        key("lr_lr", 1e-5),
        key("lr_student", 0.01),
        key("augment", augment),
        key("evaluate_every", ITERATIONS // 3),
        key("evaluate_epochs", students),
        "  evaluate:                       # students of the set, and of as many random real images",
        "    kind: evaluate",
        "    set: distill",
        key("seeds", STUDENTS),
        key("epochs", students),
        key("augment", augment),
    )
    return Draft(ipc, side, lines)


def _side(request: DraftRequest) -> int:
    return request.side((32, 64) if request.gpu else (32,))
