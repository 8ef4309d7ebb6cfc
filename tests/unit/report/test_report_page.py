"""The whole page."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from rayddl.report.page import render
from rayddl.report.run import Chapter, Run
from rayddl.report.values import Pictures
from rayddl.stages.match import report as matching

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = '<script>alert("x")</script>&\'"{{ 7*7 }}'


class Page(HTMLParser):
    """Reads a page and holds it to what every page must be."""

    def __init__(self, text: str) -> None:
        """Reads all of it at once."""
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Every element is opened once and has no attribute twice."""
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Every element is closed where it should be."""
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keeps what is to be read, with the element it stands in."""
        if data.strip() and self.open:
            self.texts.append((self.open[-1], data))

    @property
    def text(self) -> str:
        """What a person reads, with single ordinary spaces."""
        said = " ".join(t for tag, t in self.texts if tag not in ("style", "script"))
        return re.sub(r"\s+", " ", said.replace("\u00a0", " "))

    def headings(self) -> list[str]:
        """The tags of headings in order."""
        return [tag for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]

    def titles(self) -> list[str]:
        """The sections' headings."""
        return [text for tag, text in self.texts if tag == "h2"]


def test_page_is_well_formed_and_complete(quickstart: Run) -> None:
    """All tags balance, ids are unique, labels and links point at something, headings are in order."""
    page = Page(render(quickstart))

    ids = [a["id"] for _, a in page.tags if "id" in a]
    named = [i for _, a in page.tags for i in a.get("aria-labelledby", "").split()]
    anchors = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert len(ids) == len(set(ids))
    assert set(named) | set(anchors) <= set(ids)
    assert page.headings()[0] == "h1"
    assert page.headings().count("h1") == 1
    assert set(page.headings()[1:]) == {"h2"}
    assert page.titles() == [
        "Accuracy",
        "The distilled images",
        "Use this set",
        "Experts",
        "Storage",
        "Students",
        "Time",
        "Definition",
        "Provenance",
    ]
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")


def test_page_needs_no_network(quickstart: Run) -> None:
    """Nothing on the page names another place: only data URIs and anchors are referred to."""
    text = render(quickstart)

    refs = [v for _, a in Page(text).tags for k, v in a.items() if k in ("src", "href", "srcset", "action")]
    assert refs
    assert all(ref.startswith(("data:", "#")) for ref in refs)
    assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]|@import|url\((?!data:)", text, re.IGNORECASE)


def test_browser_is_told_to_run_only_our_script(quickstart: Run) -> None:
    """The content policy allows one script, by its hash, and no connection at all."""
    tags = Page(render(quickstart)).tags

    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert sum(tag == "script" for tag, _ in tags) == 1


def test_headline_gives_both_accuracies(quickstart: Run) -> None:
    """The first sentence compares the distilled images with as many random real ones."""
    text = Page(render(quickstart)).text

    assert "10 images teach ConvNet 71.2 % on held-out digits ; 10 random real images 48.3 %." in text
    assert "+22.9 points" in text


def test_tables_show_mean_deviation_and_gain(make: Any) -> None:
    """The comparison's figures are those of the evaluate stage."""
    rows = [
        make.row("distilled", "convnet", 10, [0.70, 0.72]),
        make.row("random", "convnet", 10, [0.45, 0.49]),
        make.row("whole", "convnet", 1437, [0.98]),
    ]
    text = Page(render(make.run(evaluations=(make.evaluate(rows=rows),)))).text

    assert "71.0 ± 1.0 %" in text
    assert "47.0 ± 2.0 %" in text
    assert "ConvNet distilled 10 71.0 % 1.0 2 +24.0" in text
    assert "ConvNet whole 1,437 98.0 % – 1 –" in text
    assert "of the whole data's accuracy 72 %" in text
    assert "all 1,437 images" in text


def test_each_section_links_to_its_definition_once(quickstart: Run) -> None:
    """However many charts and panels it has."""
    text = render(quickstart)
    found = {key: each.count('class="made"') for key, each in _sections(text).items()}

    assert found["match-distill"] == found["experts-experts"] == found["accuracy"] == 1
    assert max(found.values()) == 1


def _sections(text: str) -> dict[str, str]:
    return dict(re.findall(r'<section id="([^"]+)"(.*?)</section>', text, re.DOTALL))


def test_the_page_says_how_to_use_the_set(make: Any) -> None:
    """Commands with the run's name; of several evaluations one is named."""
    one = Page(render(make.run(evaluations=(make.evaluate(),)))).text
    two = Page(render(make.run(evaluations=(make.evaluate("a", "x"), make.evaluate("b", "y"))))).text

    assert "rayddl export quickstart --format hf --to shared python shared/train.py" in one
    assert "rayddl.load_set('quickstart')" in one
    assert "rayddl export quickstart --stage a --format hf --to shared" in two
    assert "load_set('quickstart', stage='a')" in two


def test_pictures_are_there_when_the_page_is_printed(make: Any) -> None:
    """They are in the page: a browser that loads them late prints empty places."""
    made = make.match()
    run = replace(make.run(matches=(made,)), real=made.pictures)
    images = [attributes for tag, attributes in Page(render(run)).tags if tag == "img"]

    assert len(images) > 20
    assert all(each["src"].startswith("data:") and "loading" not in each for each in images)


def test_notes_name_what_is_drawn_and_what_is_good(quickstart: Run) -> None:
    """The line of guessing is dotted in text and style; charts say which way is better."""
    text = render(quickstart)
    read = Page(text).text

    assert re.search(r"\.bar-drawing \.rule {[^}]*stroke-dasharray: 2 ", text)
    assert "Dotted line: guessing among 10 classes" in read
    assert "no nearer than the start; lower is better" in read
    assert "good: it falls, since training settles" in read
    assert "Good: low everywhere" in read


def test_storage_is_no_result_of_the_run(quickstart: Run) -> None:
    """It has a section of its own, and no figure in the top row."""
    head, _, below = render(quickstart).partition("</header>")

    assert "snapshots" not in head.partition("<body>")[2]
    assert "smaller than MTT's snapshots" in below.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("source", "export", "train"),
    [
        ({"name": "imagefolder", "holdout": 0.2}, "hf --with-test", "train.py"),
        ({"name": "parquet"}, "hf --with-test", "train.py"),
        ({"name": "imagefolder", "holdout": None}, "hf", "train.py TEST"),
    ],
)
def test_the_commands_bring_the_held_out_images_that_are_no_files(
    make: Any, source: dict[str, Any], export: str, train: str
) -> None:
    """Where the script cannot read them in the source, the export brings them; else they are named."""
    run = replace(make.run(evaluations=(make.evaluate(),)), source=source)

    assert f"--format {export} --to shared python shared/{train} #" in Page(render(run)).text


def test_real_images_stand_next_to_the_distilled(make: Any) -> None:
    """A row for each class, a column for each set and one for real images; no section without them."""
    made = make.match()
    run = make.run(matches=(made,))
    shown = _sections(render(replace(run, real=made.pictures)))["real"]

    assert re.findall(r'<th scope="col">([^<]+)</th>', shown) == ["Class", "distill", "real images"]
    assert shown.count("<img") == 20
    assert "real" not in _sections(render(run))


def test_experts_show_what_all_real_images_teach(quickstart: Run) -> None:
    """Their accuracy stands with the headline's figures, as the reference that is known."""
    assert "experts, trained on all real images 96.8 %" in Page(render(quickstart)).text


def test_hostile_names_are_only_text(make: Any) -> None:
    """Names of classes, stages, nets and the run cannot become markup or template code."""
    match = make.match(HOSTILE, classes=(HOSTILE, "b"))
    rows = [make.row("distilled", HOSTILE, 2, [0.5, 0.6])]
    run = make.run(
        experts=(make.experts(HOSTILE),),
        matches=(match,),
        evaluations=(make.evaluate(HOSTILE, HOSTILE, rows),),
    )
    run = replace(run, definition={"name": HOSTILE, HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE})
    many = replace(match, pictures=make.pictures((HOSTILE, "b"), 400, 4, 1))

    for shown in (run, replace(run, chapters=(Chapter(matching.part, (many,)),))):
        text = render(shown)
        page = Page(text)
        assert sum(tag == "script" for tag, _ in page.tags) == 1
        assert "<script>alert" not in text
        assert HOSTILE in "".join(t for _, t in page.texts)
        assert any(HOSTILE in a.get("alt", "") for _, a in page.tags)


def test_same_run_gives_the_same_page(quickstart: Run) -> None:
    """The page depends on the run alone: no clock, no host, no order of memory."""
    assert render(quickstart) == render(quickstart)


@pytest.mark.parametrize(
    ("parts", "headline", "titles"),
    [
        ((), "Nothing to show yet", ["Definition", "Provenance"]),
        (("experts",), "20 experts reach 96.8 %", ["Experts", "Storage", "Time", "Definition", "Provenance"]),
        (
            ("matches",),
            "10 images distilled by MCT",
            ["The distilled images", "Time", "Definition", "Provenance"],
        ),
        (
            ("evaluations",),
            "10 images teach ConvNet",
            ["Accuracy", "Use this set", "Students", "Time", "Definition", "Provenance"],
        ),
    ],
)
def test_missing_kinds_leave_their_sections_out(
    make: Any, parts: tuple[str, ...], headline: str, titles: list[str]
) -> None:
    """A run of only some kinds has just their sections, and still a sentence at the top."""
    made = {"experts": (make.experts(),), "matches": (make.match(),), "evaluations": (make.evaluate(),)}

    page = Page(render(make.run(**{p: made[p] for p in parts})))

    assert headline in page.text
    assert page.titles() == titles


def test_several_stages_of_a_kind_have_a_section_each(make: Any) -> None:
    """Two sets judged by two stages: one comparison at the top, then every stage under its name."""
    rows = [
        make.row("distilled", "convnet", 100, [0.9, 0.92]),
        make.row("random", "convnet", 100, [0.8, 0.84]),
    ]
    run = make.run(
        matches=(make.match("one"), make.match("ten", ipc=10)),
        evaluations=(make.evaluate("judge-one", "one"), make.evaluate("judge-ten", "ten", rows)),
    )

    page = Page(render(run))

    assert page.titles()[:5] == [
        "Accuracy",
        "The distilled images of one",
        "The distilled images of ten",
        "Use this set",
        "Students of judge-one",
    ]
    assert "100 images teach ConvNet 91.0 %" in page.text
    assert "judge-one ConvNet distilled 10 71.2 %" in page.text
    assert "judge-ten ConvNet distilled 100 91.0 %" in page.text
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_values_that_are_not_finite_are_dashes_and_gaps(make: Any) -> None:
    """A diverged student, a lost loss and missing figures leave no ``nan`` on the page."""
    match = make.match()
    loss = np.array(match.metrics["loss"])
    loss[10:13] = [np.nan, np.inf, -np.inf]
    match = replace(match, metrics={**match.metrics, "loss": loss})
    row = {
        "data": "distilled",
        "net": "convnet",
        "images": 10,
        "mean": None,
        "std": None,
        "accuracies": [None, 0.5],
    }
    students = {
        "data": np.array(["distilled"] * 2),
        "net": np.array(["convnet"] * 2),
        "seed": np.array([0, 1]),
        "accuracy": np.array([np.nan, 0.5]),
        "seconds": np.array([np.nan, 1.0]),
    }
    evaluation = replace(make.evaluate(rows=[{**row, "accuracies": [0.5]}]), students=students)
    stage = replace(evaluation.stage, summary={"rows": [row]})
    experts = make.experts()
    bare = replace(experts.stage, summary={})
    run = make.run(
        experts=(replace(experts, stage=bare),),
        matches=(match,),
        evaluations=(replace(evaluation, stage=stage),),
    )

    text = render(run)

    visible = re.sub(r'data:image/[^"]*', "", text.split("</style>")[1].split("<script>")[0])
    assert not re.search(r"\b(nan|inf)\b", visible, re.IGNORECASE)
    assert "3 iterations without a finite loss left out." in Page(text).text
    assert "Storage" not in Page(text).titles()


def test_a_run_whose_every_loss_is_lost_still_has_a_page(make: Any) -> None:
    """Charts without a single finite value are left out."""
    match = make.match(every=None)
    lost = np.full(len(match.metrics["loss"]), np.nan)
    match = replace(match, metrics={**match.metrics, "loss": lost, "lr_student": lost, "start": lost})

    page = Page(render(make.run(matches=(match,))))

    assert not any(tag == "svg" and "chart" in a.get("class", "") for tag, a in page.tags)


def test_single_image_of_a_single_class(make: Any) -> None:
    """The smallest set there is: one image, and it teaches."""
    rows = [make.row("distilled", "convnet", 1, [1.0])]
    pictures = Pictures(np.zeros((1, 1, 8, 8), np.uint8), np.array([0]), ("only",))
    match = replace(make.match(classes=("only",), iterations=1, every=None), pictures=pictures)

    page = Page(render(make.run(matches=(match,), evaluations=(make.evaluate(rows=rows),))))

    assert "1 image teaches ConvNet 100.0 %" in page.text
    assert any(a.get("alt") == "only, distilled" for tag, a in page.tags if tag == "img")


def test_large_set_keeps_the_page_light(make: Any) -> None:
    """A hundred classes of fifty images stay below four megabytes, with every class on the page."""
    classes = tuple(f"class {i}" for i in range(100))

    text = render(make.run(matches=(make.match(classes=classes, ipc=50, side=32, channels=3),)))

    assert len(text.encode()) < 4_000_000
    assert {t for tag, t in Page(text).texts if tag == "figcaption"} >= set(classes)


def test_storage_says_how_much_smaller(quickstart: Run) -> None:
    """The stored bytes are shown with the bytes of all snapshots and the ratio."""
    text = Page(render(quickstart)).text

    assert "51.2 MB kept, where a float32 snapshot after every epoch takes 410 MB." in text
    assert "8.0×" in text


def test_definition_is_there_without_credentials(quickstart: Run) -> None:
    """The definition is YAML; user names, passwords and queries of addresses are not on the page."""
    source = {"name": "parquet", "root": "s3://id:pass/word@bucket/images?other_key=hush"}
    definition = {"name": "mine", "source": source, "stages": {"distill": {"kind": "match", "ipc": 1}}}

    text = render(replace(quickstart, definition=definition, source=source))

    assert not any(hidden in text for hidden in ("pass/word", "word@", "other_key", "hush"))
    assert "s3://bucket/images" in text
    said = "".join(t for tag, t in Page(text).texts if tag in ("code", "span"))
    assert "distill:\n    kind: match\n    ipc: 1" in said


def test_charts_and_tables_are_there(quickstart: Run) -> None:
    """Matching has four charts, experts three; curves carry hints; tables can be sorted."""
    page = Page(render(quickstart))

    charts = [a for tag, a in page.tags if tag == "svg" and "chart" in a.get("class", "").split()]
    captions = [t for tag, t in page.texts if tag == "figcaption"]
    assert len(charts) == 7
    assert {
        "Matching loss",
        "Accuracy during matching",
        "Student learning rate",
        "Loss by where the window starts",
        "Test accuracy",
        "Training loss",
        "Distance moved in each epoch",
    } <= set(captions)
    assert "iteration 500: " in page.text
    assert all("sortable" in a["class"] for tag, a in page.tags if tag == "table")


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_contrast_in_both_themes(quickstart: Run, theme: int) -> None:
    """Text reaches AA (4.5) on the page and on panels, bars and lines 3 against the page."""
    style = render(quickstart).split("<style>")[1]
    blocks = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", b)) for b in re.findall(r":root \{([^}]*)\}", style)
    ]
    colours = blocks[theme]

    for text in ("ink", "quiet", "set", "experts", "loss"):
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    for text in ("ink", "set"):
        assert contrast(colours[text], colours["wash"]) >= 4.5, text
    for mark in ("random", "whole"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark
