"""The compile commands of the preset tidy, with its generated headers made."""

import json
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

from tree import text_of

BUILD = Path("build/tidy")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def prepare() -> dict[str, list[str]]:
    """Configures the preset, generates what sources include, and returns the command of each source, by its name."""
    configured = subprocess.run(["cmake", "--preset", "tidy"], capture_output=True, text=True, check=False)
    if configured.returncode != 0:
        raise SystemExit("configuring the preset tidy failed\n" + configured.stdout + configured.stderr)
    targets = subprocess.run(
        ["ninja", "-C", BUILD, "-t", "targets", "all"], capture_output=True, text=True, check=True
    ).stdout
    generated = re.findall(r"^(\S+\.(?:h|hpp|inc)): CUSTOM_COMMAND", targets, re.MULTILINE)
    if generated:
        subprocess.run(["ninja", "-C", BUILD, "--quiet", *generated], check=True)
    commands = json.loads(text_of(str(BUILD / "compile_commands.json")))
    return {os.path.relpath(entry["file"]): shlex.split(entry["command"]) for entry in commands}


@cache
def project_includes(name: str) -> frozenset[str]:
    """The file and all files of the project that it includes, directly or not. Includes are written from the root;
    a generated `x.pb.h` stands for its `x.proto`."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        at = waiting.pop()
        if at in found or not Path(at).is_file():
            continue
        found.add(at)
        for header in INCLUDE.findall(text_of(at)):
            waiting.append(re.sub(r"\.pb\.h$", ".proto", header))
    return frozenset(found)
