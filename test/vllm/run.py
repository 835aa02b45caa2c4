"""Runs cases on real vLLM servers: run.py [--case NAME ...] [--json]. scripts/test_vllm sets up what it needs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
from cases import Case
from servers import HERE, ROOT, Deployment, Setup, versions


@dataclass(frozen=True)
class Group:
    """Cases that share a deployment: vLLM takes a minute to start."""

    setup: Setup
    cases: Sequence[Case]
    in_ci: bool = False
    must_fail: bool = False
    """The setup breaks something: every case must notice."""


def short(deployment: cases.Deployment) -> dict[str, Any]:
    return cases.equal_answers(deployment, 12)


EVERYDAY = (cases.equal_answers, cases.several_at_once, cases.prefix_cache, cases.other_kv_differs)
GROUPS = {
    "kvferry": Group(Setup(), (*EVERYDAY, cases.client_gone, cases.nobody_comes), in_ci=True),
    "kvferry_tcp": Group(Setup(env={"KVFERRY_FABRICS": "tcp"}), EVERYDAY),
    "mooncake": Group(Setup(connector="mooncake"), EVERYDAY, in_ci=True),
    "kvferry_deaths": Group(Setup(), (cases.prefiller_killed, cases.decoder_killed)),
    "kvferry_lease": Group(Setup(env={"VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": "2"}), (cases.lease_ends,)),
    "tp_2_to_1": Group(Setup(prefill_tp=2), (short, cases.several_at_once, cases.prefix_cache)),
    "tp_1_to_2": Group(Setup(decode_tp=2), (short, cases.several_at_once, cases.prefix_cache)),
    "kvferry_in_multi": Group(Setup(inside_multi=True), (short, cases.several_at_once)),
    "kvferry_planted": Group(Setup(env={"KVF_TEST_PLANT": "drop_layer"}), (short,), must_fail=True),
    "mooncake_planted": Group(
        Setup(connector="mooncake", env={"KVF_TEST_PLANT": "drop_layer"}), (short,), must_fail=True
    ),
    "timings": Group(Setup(), (cases.timings,)),
    "mooncake_timings": Group(Setup(connector="mooncake"), (cases.timings,)),
}


def run_case(case: Case, deployment: Deployment, must_fail: bool) -> dict[str, Any]:
    began = time.monotonic()
    told: dict[str, Any] = {}
    failure = ""
    try:
        told = case(deployment)
    except Exception as error:  # a case may fail in any way
        failure = f"{type(error).__name__}: {error}"
        if not must_fail:
            traceback.print_exc()
    if must_fail:
        passed = bool(failure)
        told["noticed"] = failure
    else:
        passed = not failure
        if failure:
            told["failure"] = failure
    return {"passed": passed, "seconds": round(time.monotonic() - began, 1), **told}


def run_group(name: str, group: Group, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    model = folder / "model"
    if not model.exists():
        subprocess.run([sys.executable, str(HERE / "make_model.py"), str(model)], check=True)
    group.setup.paths.extend(options.path)
    began = time.monotonic()
    results = []
    try:
        with Deployment(group.setup, folder / name, model, options.proxy) as deployment:
            print(f"{name}: servers up after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            for case in group.cases:
                if options.only and case.__name__ not in options.only:
                    continue
                result = {"case": f"{name}.{case.__name__}", **run_case(case, deployment, group.must_fail)}
                results.append(result)
                print(json.dumps(result) if options.json else _line(result), flush=True)
    except RuntimeError as error:  # a server did not start
        result = {"case": name, "passed": False, "failure": str(error)}
        results.append(result)
        print(json.dumps(result) if options.json else _line(result), flush=True)
    return results


def _line(result: dict[str, Any]) -> str:
    word = "passed" if result["passed"] else "FAILED"
    rest = {key: value for key, value in result.items() if key not in ("case", "passed")}
    return f"{word} {result['case']} {json.dumps(rest)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=sorted(GROUPS), help="a group of cases; default: CI's")
    parser.add_argument("--only", action="append", help="of these groups, the cases of this name alone")
    parser.add_argument("--all", action="store_true", help="every group")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    parser.add_argument("--proxy", type=Path, default=ROOT / "build/release/bin/kvferry-proxy")
    parser.add_argument("--path", action="append", default=[], help="before the installed packages, for the servers")
    parser.add_argument("--logs", type=Path, help="where the servers' logs go; default: a folder that is told")
    options = parser.parse_args()
    names = list(GROUPS) if options.all else options.case or [name for name, group in GROUPS.items() if group.in_ci]
    folder = options.logs or Path(tempfile.mkdtemp(prefix="kvferry-vllm-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"logs in {folder}; {versions()}", file=sys.stderr)
    results = [result for name in names for result in run_group(name, GROUPS[name], options, folder)]
    failed = sum(not result["passed"] for result in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
