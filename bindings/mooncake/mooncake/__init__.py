"""Mooncake's transfer engine interface on kvferry. See mooncake.engine."""

from importlib.metadata import version
from pathlib import Path

from mooncake._guard import refuse_foreign_files, refuse_other_version

MIRRORED_API = "0.3.13.post1"
"""The release of Mooncake whose interface this is."""

__version__ = f"{MIRRORED_API}+kvferry.{version('kvferry-mooncake')}"

refuse_foreign_files(Path(__file__).parent)
refuse_other_version(version("kvferry-mooncake"), version("kvferry"))
