"""What must be true before this package may be used."""

from pathlib import Path

OWN_FILES = {
    "__init__.py",
    "_failures.py",
    "_guard.py",
    "_memory.py",
    "_metadata.py",
    "_settings.py",
    "_start.py",
    "engine.py",
    "py.typed",
    "store.py",
}


def refuse_foreign_files(folder: Path) -> None:
    """Another distribution's files in this package's folder would be imported instead of ours, or with them."""
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in OWN_FILES | {"__pycache__"})
    if foreign:
        raise ImportError(
            f"kvferry-mooncake shares {folder} with another distribution of mooncake "
            f"(it has {', '.join(foreign[:3])}): uninstall mooncake-transfer-engine and kvferry-mooncake, "
            "then install kvferry-mooncake again"
        )


def refuse_other_version(own: str, kvferry: str) -> None:
    if own != kvferry:
        raise ImportError(
            f"kvferry-mooncake {own} needs kvferry {own}, not {kvferry}: install the same version of both"
        )
