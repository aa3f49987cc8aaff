"""What the README tells people to type is what the command takes, and its Python runs."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tiny import tiny, write_photos
from unicl.cli import app
from unicl.run import Job, train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.strip()
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r" {4}(unicl|torchrun) ", line)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_pages_is_understood(command):
    words = shlex.split(command, comments=True)
    words = words[words.index("unicl") + 1 :]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_python_of_the_readme_and_of_the_docs_runs(tmp_path, monkeypatch):
    photos, captions = write_photos(tmp_path, each=3)
    train(Job(recipe=tiny("itl", steps=1), data=(photos, captions)), tmp_path / "runs" / "a")
    (tmp_path / "photos" / "apple").mkdir()
    Image.new("RGB", (40, 40), (200, 0, 0)).save(tmp_path / "photos" / "apple" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = [
        b for page in PAGES for b in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "page", "exec"), {})


def test_make_targets_of_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"^ {4}make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{page.name} says make {target}"
