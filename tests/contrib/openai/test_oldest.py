"""The same tests with the oldest versions that the extra allows, in a process of their own."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
#: Made by `make test` of oldest.txt.
PACKAGES = ROOT / "build" / "openai-oldest"
WANTED = Path(__file__).with_name("oldest.txt")


def test_oldest_is_what_the_extra_says() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lowest = dict(re.findall(r"^(\w+)>=([\d.]+)$", setup["options.extras_require"]["openai"], re.MULTILINE))
    pinned = dict(re.findall(r"^(\w+)==([\d.]+)$", WANTED.read_text(), re.MULTILINE))
    assert lowest.keys() == pinned.keys() == {"openai", "websockets"}
    for name, version in lowest.items():
        assert (pinned[name] + ".").startswith(version + "."), name


def test_with_the_oldest() -> None:
    assert PACKAGES.is_dir(), f"run `make test`, or: pip install --no-deps --target {PACKAGES} -r {WANTED}"
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGES}{os.pathsep}{ROOT}"}
    environment.pop("PYTEST_ADDOPTS", None)
    program = (
        "import sys, pytest\n"
        "from importlib.metadata import version\n"
        "print(version('openai'), version('websockets'), flush=True)\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    tests = str(Path(__file__).with_name("test_openai_connection.py"))
    done = subprocess.run(
        [sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.stdout.startswith("2.0.0 13.0\n"), done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout
