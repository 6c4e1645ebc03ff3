"""What the documents show is true: code compiles and runs, links lead somewhere, no name is missing."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import rtpool_sync
from rtpool_sync import bridges
from rtpool_sync.emulator import RealtimeServer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "grafana/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
#: A block runs when this stands on the line before it; all such blocks of a document are one program.
RUN = "<!-- run -->"
SETTINGS = ("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_")
# A link is [text](target), not inside a code span.
LINK = re.compile(r"(?<!`)\[[^\]`]*(?:`[^`]*`[^\]`]*)*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    line: int
    text: str
    runs: bool


def python_blocks(path: Path) -> list[Block]:
    blocks = []
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if lines[at].startswith("```python"):
            end = lines.index("```", at + 1)
            runs = lines[at - 1] == RUN
            blocks.append(Block(at + 1, "\n".join(lines[at + 1 : end]) + "\n", runs))
            at = end
        at += 1
    return blocks


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


BLOCKS = {path: python_blocks(path) for path in DOCUMENTS}
PROGRAMS = [path for path, blocks in BLOCKS.items() if any(block.runs for block in blocks)]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if BLOCKS[path]], ids=name_of)
def test_every_python_block_is_python(path: Path) -> None:
    for block in BLOCKS[path]:
        # What is shown inside a coroutine, in the migration page, may use `async with` at the top.
        source = block.text
        if re.search(r"^async ", source, re.MULTILINE):
            source = "async def shown():\n" + "".join(f"    {line}\n" for line in source.splitlines())
        compile("\n" * block.line + source, name_of(path), "exec")


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_what_is_marked_as_a_program_runs(path: Path, tmp_path: Path) -> None:
    source = ""
    for block in BLOCKS[path]:
        if block.runs:
            # The same line numbers as in the document, so that a traceback points there.
            source += "\n" * (block.line - source.count("\n")) + block.text
    program = tmp_path / "program.py"
    program.write_text(source, encoding="utf-8")
    with RealtimeServer() as server:
        environment = {
            **{name: os.environ[name] for name in os.environ if not name.startswith(SETTINGS)},
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "any",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_first_pages_are_programs() -> None:
    assert {ROOT / "README.md", ROOT / "docs/tutorial.md"} <= set(PROGRAMS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)} links to {target}"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{name_of(path)} links to {target}"


def test_the_index_leads_everywhere() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target in LINK.findall(index) if "://" not in target}
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs/index.md"}
    assert {name_of(page) for page in pages - linked} == set()


def test_the_reference_names_everything_public() -> None:
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    modules = ["bridges", "compat", "emulator", "settings", "web"]
    modules += ["contrib.django", "contrib.flask", "contrib.gunicorn", "contrib.openai"]
    names = [
        *rtpool_sync.__all__,
        *(f"pool.{name}" for name in dir(rtpool_sync.RealtimePool) if not name.startswith("_")),
        *(name for name in dir(rtpool_sync.RealtimeConnection) if not name.startswith("_")),
        *(f"rtpool_sync.{module}" for module in modules),
        *bridges.__all__,
        *bridges.CallResult.__dataclass_fields__,
        *(name for name in inspect.signature(bridges.Bridge).parameters if name != "ws"),
    ]
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", reference)]
    assert missing == []


def test_the_readme_names_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = set(re.findall(r"\bmake ([a-z-]+)\b", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= shown
    assert shown <= targets
