"""What an interrupted command says of its results."""

from __future__ import annotations

import pytest
import typer

from rayddl import interrupts
from rayddl.cli import errors
from rayddl.cli.app import app


@pytest.mark.parametrize(
    ("words", "module", "function", "says"),
    [
        (["evaluate", "x"], "judging", "judge_set", "; nothing is kept, and the same command starts anew"),
        (["compare", "x", "y"], "comparing", "compare", ""),
    ],
)
def test_only_what_can_be_resumed_is_said_to_be_kept(
    words: list[str],
    module: str,
    function: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command without results of its own promises none."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rayddl.pipeline.{module}.{function}", interrupted)
    monkeypatch.setattr(interrupts, "react", lambda: None)
    monkeypatch.setattr(interrupts, "finish", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app).main([*words, "--quiet"], standalone_mode=True)

    assert ended.value.code == errors.INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped: interrupted{says}"
