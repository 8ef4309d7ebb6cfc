"""Reading definition files: variables, ``extends``, and names in ``pipelines/``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rayddl.data.sources import registry
from rayddl.errors import DefinitionError
from rayddl.pipeline.definition import reading
from rayddl.pipeline.definition.load import load
from tests.raising import raises

HEAD = "name: d\nsource: {name: digits}\nstages:\n"


def problems_of(error: pytest.ExceptionInfo[DefinitionError], folder: Path) -> list[str]:
    """The single problems, without the folder that the test happens to run in."""
    return [line.strip().replace(f"{folder}/", "") for line in str(error.value).splitlines()[1:]]


class TestUnicode:
    @pytest.mark.parametrize(
        ("text", "place", "what"),
        [
            (r'name: "\uD800 x"', "d.yaml:1: name", r"'\ud800 x'"),
            ("name: d\n" + r'description: "x\uDFFF"', "d.yaml:2: description", r"'x\udfff'"),
            ("name: d\n" + r'"\uD800k": 1', "d.yaml:2: \ud800k", r"the key '\ud800k'"),
            (
                '{"name": "d",\n' + r'"source": {"name": "digits", "root": "\ud8ff"}}',
                "d.yaml:2: source.root",
                r"'\ud8ff'",
            ),
        ],
    )
    def test_half_a_character_is_refused(
        self, written: Callable[..., Path], text: str, place: str, what: str
    ) -> None:
        """No file or terminal takes it; the run's record would be unreadable."""
        path = written(text)
        with raises("half-a-character") as caught:
            load(path)
        found = [line for line in problems_of(caught, path.parent) if "half of a character" in line]  # type: ignore[arg-type]
        key = place.rsplit(": ", 1)[0] + ": " if "ud800k" in what else f"{place}: "
        assert found == [
            f"{key}{what} holds half of a character (U+D800 to U+DFFF); write the whole character"
        ]
        same = [line for line in problems_of(caught, path.parent) if line.startswith(f"{place}: ")]  # type: ignore[arg-type]
        assert same in ([], found)

    def test_in_a_mapping_an_override_and_a_variable(
        self, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wherever it comes from."""
        mapping = {"name": "d", "source": {"name": "digits", "root": "\ud812"}, "stages": {}}
        with raises("half-a-character", "source.root"):
            load(mapping)
        path = written(f"{HEAD}  s: {{kind: coreset, method: random, ipc: 1}}\n")
        for overrides in ([r'description="\uD800"'], {"description": "\ud800"}):
            with raises("half-a-character", "description"):
                load(path, overrides)

    def test_two_halves_are_a_character(self, written: Callable[..., Path]) -> None:
        """As JSON writes those beyond its four digits."""
        stage = '{"s": {"kind": "coreset", "method": "random", "ipc": 1}}'
        head = '{"name": "d", "source": {"name": "digits"}, "description": '
        path = written(head + r'"a \ud83d\ude00 z", "stages": ' + stage + "}")
        assert load(path).description == "a \U0001f600 z"

    def test_names_that_are_not_utf_8_stay_names(self, tmp_path: Path) -> None:
        """A path of which Python makes U+DC80 to U+DCFF is found, and is written as UTF-8."""
        folder = os.fsencode(tmp_path) + b"/caf\xe9"
        for name in (b"train/a", b"train/b", b"val/a", b"val/b"):
            os.makedirs(folder + b"/" + name)
            Image.new("RGB", (8, 8)).save(os.fsdecode(folder + b"/" + name + b"/0.png"))
        source = {"name": "imagefolder", "root": os.fsdecode(folder)}
        stages = {"s": {"kind": "coreset", "method": "random", "ipc": 1}}
        found = load({"name": "d", "source": source, "stages": stages})
        assert found.source.root == f"{tmp_path}/caf\\xe9"
        assert registry.load(found.source).train.classes == ("a", "b")
        given = load(
            {"name": "d", "source": source | {"root": "x"}, "stages": stages},
            [f"source.root={source['root']}"],
        )
        assert given.source.root == found.source.root
        assert given.overrides == (f"source.root={found.source.root}",)


class TestOneProblem:
    """A value that cannot be read has one problem: what stands in its place has none."""

    @pytest.mark.parametrize(
        ("count", "code", "key"),
        [
            ("9" * 400, "value-of-another-type", "stages.s.count"),
            ("0x" + "f" * 300, "value-of-another-type", "stages.s.count"),
            ("!!float a", "value-of-another-type", "stages.s.count"),
            ("!!binary a", "tag-not-allowed", "stages.s.count"),
            ("'${'", "substitution-malformed", "stages.s.count"),
            ("&a [*a]", "too-many-values", ""),
        ],
    )
    def test_of_a_scalar(
        self, lab: Any, written: Callable[..., Path], count: str, code: str, key: str
    ) -> None:
        """Also in a list of itself."""
        path = written(f"{HEAD}  s: {{kind: make, count: {count}}}\n")
        with pytest.raises(DefinitionError) as caught:
            lab.load(path)
        found = [(each["code"], each["key"]) for each in caught.value.problems]
        assert found == [(code, key)]

    @pytest.mark.parametrize(
        "text",
        ["stages: {s: &a {kind: make, shape: *a}}", "stages: &a {s: *a}", "stages: {s: &a {kind: *a}}"],
    )
    def test_of_an_alias(self, lab: Any, written: Callable[..., Path], text: str) -> None:
        """One that holds itself."""
        path = written(f"name: d\nsource: {{name: digits}}\n{text}\n")
        with pytest.raises(DefinitionError) as caught:
            lab.load(path)
        assert [each["code"] for each in caught.value.problems] == ["too-many-values"]


class TestVariables:
    def test_unset(self, lab: Any, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        """An unset variable is the only problem reported for its key."""
        monkeypatch.delenv("COUNT", raising=False)
        path = written(
            f"{HEAD}  s: {{kind: make, count: '${{COUNT}}'}}\n  t: {{kind: make, count: '${{COUNT}}'}}\n"
        )

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        text = "the environment variable COUNT is not set; set it, or give a default: ${COUNT:-value}"
        assert problems_of(error, path.parent) == [
            f"d.yaml:4: stages.s.count: {text}",
            f"d.yaml:5: stages.t.count: {text}",
        ]

    def test_not_needed(
        self, lab: Any, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A variable need not be set if an override or an extending file replaces its key."""
        monkeypatch.delenv("NOT_SET", raising=False)
        written(
            "name: base\nsource: {name: cifar10, root: '${NOT_SET}'}\nstages:\n"
            "  s: {kind: make, count: '${NOT_SET}', shape: {side: '${NOT_SET}'}, shapes: [{side: '${NOT_SET}'}]}\n",
            "base.yaml",
        )
        path = written("extends: base.yaml\nstages: {s: {count: 2, shapes: [], shape: {side: 1}}}\n")

        definition = lab.load(path, ["source.root=data"])

        assert definition.source.root == "data"
        assert definition.to_json()["stages"]["s"]["shapes"] == []
        with raises("variable-not-set", "source.root"):
            lab.load(path)

    def test_in_an_override(self, lab: Any, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable in an override is replaced, too, and has to be set."""
        monkeypatch.setenv("COUNT", "8")
        monkeypatch.delenv("NOT_SET", raising=False)

        assert lab.load(three, ["first.count=${COUNT}"]).to_json()["stages"]["first"]["count"] == 8
        with raises("variable-not-set"):
            lab.load(three, ["first.count=${NOT_SET}"])


class TestExtends:
    def test_merge(self, lab: Any, written: Callable[..., Path]) -> None:
        """Mappings are merged key by key, lists and values replaced, and new stages added."""
        written(
            "name: base\nsource: {name: digits, size: 8}\nstages:\n"
            "  a: {kind: make, shape: {side: 2, colour: green}, shapes: [{side: 1}, {side: 2}]}\n",
            "base/base.yaml",
        )
        path = written(
            "extends: base/base.yaml\nname: child\nstages:\n  a: {shape: {side: 3}, shapes: [{side: 5}]}\n"
            "  b: {kind: use, make: a}\n"
        )

        definition = lab.load(path)

        assert definition.to_json() == {
            "name": "child",
            "seed": 0,
            "source": {"name": "digits", "size": 8},
            "stages": {
                "a": {"kind": "make", "shape": {"side": 3, "colour": "green"}, "shapes": [{"side": 5}]},
                "b": {"kind": "use", "make": "a"},
            },
        }

    def test_place_is_where_it_was_written(self, lab: Any, written: Callable[..., Path]) -> None:
        """A problem in the extended file has that file's line."""
        written(
            "name: base\nsource: {name: digits}\nstages:\n  a:\n    kind: make\n    count: 0\n", "base.yaml"
        )
        path = written("extends: base.yaml\nname: child\n")

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == [
            "base.yaml:6: stages.a.count: 0 is out of range; expected an integer >= 1"
        ]

    def test_missing(self, lab: Any, written: Callable[..., Path]) -> None:
        """A file that is not there is named with its nearest neighbour."""
        written("source: {name: digits}\n", "base.yaml")
        path = written(f"extends: bsae.yaml\n{HEAD}  a: {{kind: make}}\n")

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == [
            "d.yaml:1: extends: there is no file 'bsae.yaml'; did you mean 'base.yaml'? "
            "definitions there: base.yaml"
        ]

    def test_circle(self, lab: Any, written: Callable[..., Path]) -> None:
        """Files that extend each other are shown as the circle they make."""
        written(f"extends: d.yaml\n{HEAD}  a: {{kind: make}}\n", "e.yaml")
        path = written("extends: e.yaml\n")

        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == [
            "e.yaml:1: extends: the files extend each other in a circle: d.yaml → e.yaml → d.yaml"
        ]

    def test_not_a_name(self, lab: Any, written: Callable[..., Path]) -> None:
        """Anything but a file name is refused."""
        path = written(f"extends: [a, b]\n{HEAD}  a: {{kind: make}}\n")

        with raises("extends-not-a-name", "extends"):
            lab.load(path)


class TestFinding:
    def test_by_name(
        self, lab: Any, written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bare name is looked for in ./pipelines, with and without its ending."""
        written(f"{HEAD}  a: {{kind: make}}\n", "pipelines/quickstart.yaml")
        monkeypatch.chdir(tmp_path)

        assert lab.load("quickstart").file == "pipelines/quickstart.yaml"
        assert lab.load("quickstart.yaml").file == "pipelines/quickstart.yaml"

    def test_unknown(
        self, lab: Any, written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unknown name answers with the known ones."""
        written("extends: base.yaml\n", "pipelines/quickstart.yaml")
        written("name: c\nsource: {name: cifar10}\nstages: {}\n", "pipelines/cifar10-mct-ipc1.yaml")
        written("cluster: {}\nworkers:\n  stages: 3\n", "pipelines/quickstar.yaml")
        written("[broken", "quickstra.yaml")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(reading, "_shipped", lambda: tmp_path / "none")

        for name in ("quickstrat", "quickstrat.yaml"):
            with pytest.raises(DefinitionError) as error:
                lab.load(name)

            assert str(error.value) == (
                f"no definition '{name}': looked for quickstrat.yaml, pipelines/quickstrat.yaml; "
                "did you mean 'quickstart.yaml'? known definitions: cifar10-mct-ipc1.yaml, quickstart.yaml"
            )

    @pytest.mark.parametrize(
        ("text", "is_one"),
        [
            ('{"name": "d", "source": {"name": "digits"}}', True),
            ('{\n  "name": "d",\n  "stages": {}\n}', True),
            ("{name: d,extends: base}", True),
            ('{"name": "d"}', False),
            ("a: {source: 1}\n", False),
            ("\ufeffstages: {}\n", True),
        ],
    )
    def test_which_files_are_known(
        self,
        written: Callable[..., Path],
        text: str,
        is_one: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """By their keys, also where they are written as JSON."""
        written(text, "pipelines/d.yaml")
        monkeypatch.chdir(tmp_path)
        assert ("d" in reading.names()) == is_one

    def test_a_pipe_is_not_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would be waited for."""
        os.mkfifo(tmp_path / "d.yaml")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(reading, "_shipped", lambda: tmp_path / "none")
        # The sentences of errors are read from a file, after the context.
        with raises("no-definition"), monkeypatch.context() as patched:
            patched.setattr(Path, "open", lambda path, *_: pytest.fail(f"{path} is opened"))
            load("other.yaml")

    @pytest.mark.parametrize("folder", ["", "mine/"])
    def test_another_ending(self, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The files next to the missing one are among those that may be meant."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "photos.yaml").write_text("name: mine\nstages: {}\n")
        with pytest.raises(DefinitionError) as caught:
            load(f"{folder}photos.yml")
        assert caught.value.code == "no-definition"
        assert "did you mean 'photos.yaml'? " in str(caught.value)

    def test_shipped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Elsewhere than in a clone the shipped definitions are found by name; those of the folder come first."""
        monkeypatch.chdir(tmp_path)
        assert load("quickstart").name == "quickstart"
        assert "quickstart-rded" in reading.names()
        (tmp_path / "quickstart.yaml").write_text(
            "name: mine\nsource: {name: digits}\nstages: {r: {kind: report}}\n"
        )
        assert load("quickstart").name == "mine"

    def test_without_its_ending(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a file in another folder, too."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "a.yml").write_text(
            "name: mine\nsource: {name: digits}\nstages: {r: {kind: report}}\n"
        )
        assert load("mine/a").name == "mine"


class TestTrust:
    """Files that another one extends are not the user's own words."""

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ('"a\\0b"', "extends-not-a-name"),
            ('"a\\e[31mb"', "extends-not-a-name"),
            ('"a\\nb"', "extends-not-a-name"),
            ("x" * 5000, "extends-not-a-name"),
            ("round.yaml", "extends-not-a-name"),
            ("/dev/null", "extends-missing"),
            (".", "extends-missing"),
        ],
    )
    def test_names_that_are_none(self, lab: Any, written: Callable[..., Path], name: str, code: str) -> None:
        """One sentence, with the line of the key."""
        path = written(f"extends: {name}\n{HEAD}  s: {{kind: make, count: 1}}\n")
        (path.parent / "round.yaml").symlink_to("round.yaml")
        with raises(code, "extends") as caught:
            lab.load(path)
        assert len(str(caught.value)) < 1000

    def test_what_the_base_would_have_is_not_missing(self, lab: Any, written: Callable[..., Path]) -> None:
        """A base that cannot be read is the only problem, beside those of what is there."""
        with pytest.raises(DefinitionError) as error:
            lab.load(written("extends: gone.yaml\nstages: {s: {kind: make, cuont: 3}}\n"))
        assert [problem["code"] for problem in error.value.problems] == ["extends-missing", "unknown-key"]

    def test_a_long_chain(self, lab: Any, written: Callable[..., Path]) -> None:
        """Hundreds of files that extend each other are refused, not followed."""
        for i in range(200):
            written(f"extends: d{i + 1}.yaml\n", f"d{i}.yaml")
        with raises("extends-too-deep", "extends"):
            lab.load(written("extends: d0.yaml\n"))

    @pytest.mark.parametrize(
        "text",
        [
            "root:*:19000:0:99999:7:::\nadmin:$6$hash:1\n",
            "key: [secret\n",
            "user: me\nsecret: x\nsecret: y\n",
            "- secret\n",
            "name: x\nsecret: y\n",
        ],
    )
    def test_other_files_are_not_quoted(self, lab: Any, written: Callable[..., Path], text: str) -> None:
        """`extends: /etc/shadow` says that this is no definition, and shows nothing of it."""
        written(text, "shadow")
        path = written(f"extends: shadow\n{HEAD}  s: {{kind: make, count: 1}}\n")
        with pytest.raises(DefinitionError) as error:
            lab.load(path)

        assert problems_of(error, path.parent) == [
            "shadow: is no definition; a definition has the keys name, source, stages"
        ]

    @pytest.mark.parametrize(
        "root",
        [
            "s3://bucket/${TOKEN}",
            "s3://${TOKEN}/x",
            "s3://b/x?endpoint_override=${TOKEN}.example.org",
            "${TOKEN}://x",
            "${PLACE}?endpoint_override=example.org",
            "${PLACE}/${TOKEN}",
            "${NONE:-s3://b}/${TOKEN}",
            "s3:/${SLASH}b/${TOKEN}",
        ],
    )
    def test_variables_stay_here(
        self, lab: Any, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, root: str
    ) -> None:
        """A file that is extended puts no variable into a URI, however it spells one."""
        for name, value in {"TOKEN": "topsecret", "PLACE": "s3://key:hush@mine", "SLASH": "/"}.items():
            monkeypatch.setenv(name, value)
        source = f"source: {{name: parquet, root: '{root}'}}\n"
        stages = "stages: {s: {kind: make, count: 1}}\n"
        written(f"name: base\n{source}{stages}", "base.yaml")
        with raises("variable-in-a-uri", "source.root") as caught:
            lab.load(written("extends: base.yaml\n"))
        assert not any(word in str(caught.value) for word in ("topsecret", "hush"))
        assert "://" in lab.load(written(f"name: own\n{source}{stages}")).source.root

    @pytest.mark.parametrize("root", ["${PLACE}", "${PLACE}/deep/x", "/data/${TOKEN}", "s3://bucket/x"])
    def test_what_stays_allowed(
        self, lab: Any, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, root: str
    ) -> None:
        """The user's own place with a path behind it, and variables in paths of this machine."""
        monkeypatch.setenv("TOKEN", "t")
        monkeypatch.setenv("PLACE", "s3://mine")
        written(
            f"name: base\nsource: {{name: parquet, root: '{root}'}}\nstages: {{s: {{kind: make, count: 1}}}}\n",
            "base.yaml",
        )
        assert lab.load(written("extends: base.yaml\n")).source.root


class TestSizes:
    """Input of any length has an answer, soon and short."""

    def test_long_names(self, lab: Any, written: Callable[..., Path]) -> None:
        """A stage and a run name files, whose names are limited."""
        name = "e" * 201
        with raises("stage-name-too-long", f"stages.{'e' * 192}…"):
            lab.load(written(f"{HEAD}  {name}: {{kind: make, count: 1}}\n"))
        with raises("refused-value", "name"):
            lab.load(
                {"name": name, "source": {"name": "digits"}, "stages": {"s": {"kind": "make", "count": 1}}}
            )
        assert lab.load(written(f"{HEAD}  {'e' * 200}: {{kind: make, count: 1}}\n")).stages

    def test_many_problems(self, lab: Any, written: Callable[..., Path]) -> None:
        """The time is linear in their number, and the first thousand are listed."""

        def seconds(count: int) -> float:
            path = written(f"{HEAD}  s: {{kind: make, count: 1}}\n" + "seed: 1\n" * count)
            began = time.process_time()
            with raises("duplicate-key", "seed") as caught:
                lab.load(path)
            assert len(str(caught.value).splitlines()) == 1 + min(count - 1, 1001)
            return time.process_time() - began

        seconds(1000)
        assert seconds(16_000) < 10 * seconds(4_000)

    def test_large_files(
        self, lab: Any, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A definition is no data set."""
        monkeypatch.setenv("RAYDDL_MAX_DOCUMENT_BYTES", "100")
        with raises("definition-too-large", ""):
            lab.load(written(f"{HEAD}  s: {{kind: make, count: 1}}\n" + "#" * 100))

    def test_overrides_of_many_parts(self, lab: Any, three: dict[str, Any]) -> None:
        """The message shows their beginning."""
        with raises("override-malformed", "") as caught:
            lab.load(three, ["first." + "a." * 3000 + "b=1"])
        assert len(str(caught.value)) < 500

    def test_numbers_of_many_digits(self, lab: Any, written: Callable[..., Path]) -> None:
        """They are no numbers that anything here counts."""
        with raises("value-of-another-type", "stages.s.count"):
            lab.load(written(f"{HEAD}  s: {{kind: make, count: {'9' * 400}}}\n"))
