"""Dependencies point down: which folder may include which is this table, and nothing else."""

import posixpath
import re
from collections.abc import Iterator

from tree import CPP, finish, numbered_lines, tracked

# The folders of engine/, from the bottom up: each may use those before it. `config` and `types` are headers of
# engine/ itself, which its folders use.
ENGINE = ("config", "io", "memory", "types", "plan", "fabric", "session", "run", "parcel", "bench")
ENGINE_FILES = {"engine/config.h": "engine/config", "engine/types.h": "engine/types"}

# What each layer may include, besides itself. engine/<folder> includes its own subfolders.
ALLOWED: dict[str, set[str]] = {
    "common": set(),
    "proto": {"common"},
    "http": {"common"},
    **{
        f"engine/{name}": {"common", "proto", *(f"engine/{lower}" for lower in ENGINE[:at])}
        for at, name in enumerate(ENGINE)
    },
    # The other files of engine/ itself put the folders together; engine.h and parcel.h are the public face.
    "engine": {"common", "proto", *(f"engine/{name}" for name in ENGINE[:-1])},
    "bootstrap": {"common", "proto", "http", "engine"},
    "proxy": {"common", "http", "bootstrap"},
    "sim": {"common", "proto", "http", "engine", "bootstrap", "proxy"},
    "bindings": {"common", "engine", "bootstrap", "proxy"},
}
ALLOWED["engine/bench"] |= {"engine"}  # the benchmark is a program that uses the engine from outside

# Of bootstrap/, the proxy uses the client and the public face; the server belongs to the prefiller.
ONLY: dict[tuple[str, str], set[str]] = {
    ("proxy", "bootstrap"): {"bootstrap/client.h", "bootstrap/bootstrap.h"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')


def layer_of(name: str) -> str:
    """`engine/fabric/tcp/lane.h` is of `engine/fabric`, `engine/engine.h` of `engine`, `http/server.h` of `http`."""
    if name in ENGINE_FILES:
        return ENGINE_FILES[name]
    parts = name.split("/")
    if parts[0] == "engine" and len(parts) > 2:
        return f"engine/{parts[1]}"
    return parts[0]


def backend_of(name: str) -> str:
    """`tcp` for `engine/fabric/tcp/lane.h`; empty outside of the backends' folders."""
    parts = name.split("/")
    return parts[2] if parts[:2] == ["engine", "fabric"] and len(parts) > 3 else ""


def may_include(name: str, header: str) -> bool:
    layer = layer_of(name)
    if layer == "test":
        return True
    # Backends do not know each other.
    if backend_of(name) and backend_of(header) not in ("", backend_of(name)):
        return False
    target = layer_of(header)
    if (layer, target) in ONLY:
        return header in ONLY[layer, target]
    allowed = ALLOWED[layer] | {layer}
    # Whoever may use the engine sees its face and, for the programs that build it, its folders.
    return target in allowed or (target.startswith("engine/") and "engine" in allowed and target != "engine/bench")


def problems() -> Iterator[str]:
    tops = {name.split("/")[0] for name in (*ALLOWED, "test")}
    files = tracked(*CPP)
    for name in files:
        if layer_of(name) not in ALLOWED and layer_of(name) != "test":
            yield f"{name}: its folder is no layer of scripts/lint.d/layers.py"
    known = [name for name in files if layer_of(name) in ALLOWED or layer_of(name) == "test"]
    for name, number, line in numbered_lines(known):
        found = INCLUDE.match(line)
        if not found or found.group(2).split("/")[0] not in tops:
            if found and found.group(1) == '"':
                yield f'{name}:{number}: "{found.group(2)}" is not written from the root'
            continue
        header = posixpath.normpath(found.group(2))
        if not may_include(name, header):
            yield f"{name}:{number}: {layer_of(name)} may not use {header}"


if __name__ == "__main__":
    finish(problems())
