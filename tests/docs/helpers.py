"""What the documents show, and a copy of the project in which one does what they say."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.helpers import ROOT, Script, StartScript

PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
TEXTS = {path.name: path.read_text() for path in PATHS}
# What comes before each command: `uv run` runs this Python, because it has the packages.
SHELL = f"""exec 2>&1
python() {{ exec {sys.executable} "$@"; }}
pip() {{ :; }}
poetry() {{ uv "$@"; }}
uv() {{
    shift
    [ "$1" != --group ] || shift 2
    case $1 in python) shift ;; *.py | -m) ;; *) set -- -m "$@" ;; esac
    python "$@"
}}
"""


def blocks(name: str, kind: str) -> list[str]:
    """Return the fenced blocks of one kind in a document."""
    return re.findall(rf"^```{kind}\n((?:.*\n)*?)^```$", TEXTS[name], re.MULTILINE)


def commands(name: str) -> list[str]:
    """Return the commands that a document shows, each in a line."""
    return "".join(blocks(name, "shell")).splitlines()


class Copy:
    """A copy of the project with free ports, in which commands can be run as they stand."""

    def __init__(self, folder: Path, free_port: Callable[[], int], start: StartScript) -> None:
        self.folder, self.start = folder, start
        self.ports = defaultdict[str, str](lambda: str(free_port()))
        # What else is different here, so that it runs, and soon.
        self.replaced = {"/opt/aiohttp-chat/.venv/bin/": "", "INTERVAL = 1": "INTERVAL = 0.1"}
        self.replaced |= {"sleep(15)": "sleep(1)"}
        self.url = self.here("http://127.0.0.1:8080")
        for pattern in ("*.py", "*.toml", "examples/*.*", "static/*.*"):
            for path in ROOT.glob(pattern):
                self.write(str(path.relative_to(ROOT)), path.read_text())

    def here(self, text: str) -> str:
        """Return a text of the project as it is in this copy."""
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        # aiohttp's own port is 8080, too.
        text = re.sub(r"run_app\((app|init_app\(\))\)", r"run_app(\1, port=8080)", text)
        return re.sub(r"\b(8000|808\d|9000)\b", lambda found: self.ports[found[0]], text)

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.here(text))

    async def run(self, command: str, *patterns: str) -> Script:
        """Run a command, and wait for lines of its output that contain patterns."""
        shell = f"cd {self.folder}\n{SHELL}{self.here(command)}"
        script = await self.start(shell=shell, HOME=str(self.folder), PYTHONUNBUFFERED="1")
        for pattern in patterns:
            await script.find(pattern)
        return script

    async def output(self, command: str, typed: str) -> str:
        """Run a command that succeeds, and type something; return its output."""
        code, output, _ = await (await self.run(command)).end(typed.encode())
        assert code == 0, output
        return output
