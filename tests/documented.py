"""The commands of the pages: each block is given to bash, with stand-ins for the programs that note what they are called with."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
# Programs that are not ours: their arguments are their own affair.
FOREIGN = ("docker", "pip", "sudo", "tensorboard", "touch")
NOTED = ("bash", "python", "sbatch", "srpo-doctor", "srpo-plan", *FOREIGN)
ENVIRONMENT = (".venv/bin/python", ".venv/bin/ruff", ".venv/bin/lint-imports", ".venv/bin/mypy", ".venv/bin/pip")
STARTS = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, (*NOTED, *ENVIRONMENT)))}) \S")
NOTE = "#!{python}\nimport json, sys\nopen({log!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"


def blocks(page: Path) -> list[str]:
    """What a page says to type: the bash blocks, and each command between backticks in its text."""
    text = page.read_text(encoding="utf-8")
    found = [match[1] for match in re.finditer(r"^```bash\n(.*?)^```", text, flags=re.S | re.M)]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return found + [code for code in re.findall(r"`([^`\n]+)`", prose) if STARTS.match(code)]


def commands(block: str, folder: Path) -> list[list[str]]:
    """Every command of a block with its arguments, as bash has them. folder: an empty one, for the stand-ins."""
    log, programs = folder / "log", folder / "programs"
    programs.mkdir()
    for name in (*NOTED, *ENVIRONMENT):
        place = folder / name if name.startswith(".venv") else programs / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(NOTE.format(python=sys.executable, log=str(log), name=name))
        place.chmod(0o755)
    written = re.sub(r"\b([\w.]+)\|[\w|]+", r"\1", block)  # hub|PATH: the first of what may stand there
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["/bin/bash", "-euc", written], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, f"{block}\n{done.stderr}"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
