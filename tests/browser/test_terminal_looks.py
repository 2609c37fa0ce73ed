"""What `plan`, `build` and an error look like in a terminal of 80 and 100 columns.

Runs the program on a pseudo-terminal and draws what it wrote as pictures in `build/screenshots`,
to be looked at; what can be checked without eyes is checked here.
"""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.demo import CACHE, ROOT

SHOTS = ROOT / "build/screenshots"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(columns: int, *words: object) -> str:
    """Run the command line on a pseudo-terminal and return all it wrote there."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "bundler", *map(str, words)],
        stdin=follower, stdout=follower, stderr=follower, cwd=ROOT, env=environment,
    )  # fmt: skip
    os.close(follower)
    written = bytearray()
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other end of a pseudo-terminal is closed: EIO on Linux
            break
        if not data:
            break
        written += data
    process.wait(600)
    os.close(leader)
    return written.decode()


def settled(raw: str) -> str:
    """Return what is left standing on the screen: moving lines overwrite themselves."""
    lines: list[str] = []
    row = 0
    for token in re.split(r"(\r\n|\r|\x1b\[\d*A|\x1b\[2K)", raw):
        if token == "\r\n":
            row += 1
        elif re.fullmatch(r"\x1b\[\d*A", token):
            row -= int(token[2:-1] or 1)
        elif token == "\x1b[2K":
            while len(lines) <= row:
                lines.append("")
            lines[row] = ""
        elif token not in ("", "\r"):
            while len(lines) <= row:
                lines.append("")
            lines[row] += token.replace("\x1b[?25l", "").replace("\x1b[?25h", "")
    return "\n".join(lines).rstrip("\n")


def draw(name: str, text: str, columns: int) -> Path:
    """Save a terminal's text as a page without anything remote."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    page = SHOTS / f"{name}.html"
    console.save_html(str(page), theme=MONOKAI)
    return page


@pytest.mark.parametrize("columns", [80, 100])
def test_a_plan_fits_its_terminal(demo, columns):
    recipe = ROOT / "recipes/quickstart.toml"
    text = settled(on_a_terminal(columns, "plan", recipe, "--store", CACHE / "store"))
    draw(f"terminal-plan-{columns}", text, columns)
    plain = [ANSI.sub("", line) for line in text.splitlines()]
    assert any("bits/weight" in line for line in plain)
    wide = [line for line in plain if len(line) > columns + 40]
    assert wide == []


def test_a_build_leaves_one_line_for_each_step(demo):
    recipe = ROOT / "recipes/quickstart.toml"
    raw = on_a_terminal(100, "build", recipe, "--store", CACHE / "store", "--output", demo)
    text = settled(raw)
    draw("terminal-build", text, 100)
    plain = ANSI.sub("", text)
    for step in ("models/chat/convert", "models/chat/prove", "corpora/handbook", "seal"):
        assert plain.count(step) == 1, plain
    assert "is ready" in plain


def test_an_error_says_where_and_what_next_in_colour():
    text = settled(on_a_terminal(100, "plan", ROOT / "tests/recipes/typos.toml"))
    draw("terminal-error", text, 100)
    assert "\x1b[1;31merror:" in text
    assert "did you mean `title`?" in ANSI.sub("", text)
