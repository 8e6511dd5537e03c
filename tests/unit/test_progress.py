"""Progress bars: for people at a terminal, and for nobody else."""

import io
import sys

import pytest

from pyfunq.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stderr", "shown", "seen"), [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)]
)
def test_a_bar_is_shown_where_it_is_wanted_and_can_be(
    stderr: io.StringIO, shown: bool, seen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar("predict", shown=shown, total=10) as show:
        show(10, 10)
    assert ("predict" in stderr.getvalue() and "10/10" in stderr.getvalue()) == seen
    assert capsys.readouterr().out == ""
