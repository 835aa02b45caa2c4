"""Runs cases on real vLLM servers: scripts/test_vllm sets up what it needs."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import cases
import report
from cases import Case
from servers import HERE, LIVE, ROOT, Deployment, Setup, one_group_of_the_scheduler, versions


@dataclass(frozen=True)
class Group:
    """Cases that share a deployment: vLLM takes a minute to start. Without one: the tests of the connector alone."""

    setup: Setup | None
    cases: Sequence[Case]
    by_default: bool = False


def short(deployment: Deployment) -> dict[str, Any]:
    return cases.equal_answers(deployment, 12)


EVERYDAY = (cases.equal_answers, cases.several_at_once, cases.prefix_cache, cases.swapped_kv)
UNEQUAL_RANKS = (short, cases.several_at_once, cases.prefix_cache)
ENDINGS = (cases.client_gone, cases.nobody_comes, cases.prefill_aborted, cases.prefiller_killed, cases.decoder_killed)
SHORT_LEASE = {"VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": "4"}
GROUPS = {
    "connector": Group(None, (), by_default=True),
    "kvferry": Group(Setup(), (*EVERYDAY, *ENDINGS), by_default=True),
    "kvferry_tcp": Group(Setup(env={"KVFERRY_FABRICS": "tcp"}), EVERYDAY),
    "mooncake": Group(Setup(connector="mooncake"), (*EVERYDAY, cases.planted_fault), by_default=True),
    "kvferry_lease": Group(Setup(env=SHORT_LEASE), (cases.lease_ends, cases.slow_decoder), by_default=True),
    "kvferry_recompute": Group(Setup(env=SHORT_LEASE, policy="recompute"), (cases.slow_decoder,)),
    "tp_2_to_1": Group(Setup(prefill_tp=2), UNEQUAL_RANKS, by_default=True),
    "tp_1_to_2": Group(Setup(decode_tp=2), UNEQUAL_RANKS),
    "kvferry_in_multi": Group(Setup(inside_multi=True), (short, cases.several_at_once), by_default=True),
    "kvferry_both": Group(Setup(both=True), (cases.both_ways,)),
    "kvferry_window": Group(Setup(window=300), (short, cases.several_at_once), by_default=True),
    "kvferry_planted": Group(Setup(planted=True), (cases.planted_fault,), by_default=True),
}
ORIGINAL = ROOT / "build/mooncake-original"
TIMINGS = {
    "vLLM's connector on Mooncake": Group(Setup(connector="mooncake", paths=[str(ORIGINAL)]), (cases.timings,)),
    "vLLM's connector on kvferry": Group(Setup(connector="mooncake"), (cases.timings,)),
    "kvferry's connector": Group(Setup(), (cases.timings,)),
    "the same without its short wait": Group(Setup(extra={"kvferry_short_wait_us": 0}), (cases.timings,)),
}


class TimeOverError(BaseException):
    """No case catches it."""


def end_after(minutes: float) -> None:
    """Also where SIGTERM asks for it: servers are killed, so that whatever waits for one goes on."""

    def over(number: int, _frame: FrameType | None) -> None:
        for server in LIVE:
            server.send_signal(signal.SIGKILL)
        asked = "asked to end" if number == signal.SIGTERM else f"not done after {minutes} minutes"
        raise TimeOverError(asked)

    signal.signal(signal.SIGTERM, over)
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)


def run_case(case: Case, deployment: Deployment) -> dict[str, Any]:
    began = time.monotonic()
    try:
        told = {"passed": True, **case(deployment)}
    except Exception as error:  # a case may fail in any way
        traceback.print_exc()
        told = {"passed": False, "failure": f"{type(error).__name__}: {error}"}
    return {"seconds": round(time.monotonic() - began, 1), **told}


def run_units() -> dict[str, Any]:
    """The connector's two sides without servers."""
    began = time.monotonic()
    command = [sys.executable, "-m", "unittest", "connector_test", "workers_test", "gpu_test"]
    ran = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=600, check=False)
    count = re.search(r"^Ran (\d+) tests", ran.stderr, re.MULTILINE)
    told = {"seconds": round(time.monotonic() - began, 1), "tests": int(count[1]) if count else 0}
    if ran.returncode == 0 and told["tests"]:
        return {"passed": True, **told}
    print(ran.stderr, file=sys.stderr)
    return {"passed": False, **told, "failure": f"python -m unittest ended with {ran.returncode}"}


def run_group(
    name: str, group: Group, options: argparse.Namespace, folder: Path, results: list[dict[str, Any]]
) -> None:
    if group.setup is None:
        tell(results, {"case": name, **run_units()}, options.json)
        return
    window = group.setup.window
    model = folder / f"model-{window}"
    if not model.exists():
        subprocess.run([sys.executable, str(HERE / "make_model.py"), str(model), str(window)], check=True)
    began = time.monotonic()
    try:
        with Deployment(group.setup, folder / name, model, options.proxy) as deployment:
            print(f"{name}: servers up after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            for case in group.cases:
                if options.only and case.__name__ not in options.only:
                    continue
                tell(results, {"case": f"{name}.{case.__name__}", **run_case(case, deployment)}, options.json)
    except RuntimeError as error:  # a server did not start
        tell(results, {"case": name, "passed": False, "failure": str(error)}, options.json)
    finally:
        print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr, flush=True)


def tell(results: list[dict[str, Any]], result: dict[str, Any], as_json: bool) -> None:
    results.append(result)
    print(json.dumps(result) if as_json else _line(result), flush=True)


def _line(result: dict[str, Any]) -> str:
    word = "passed" if result["passed"] else "FAILED"
    rest = {key: value for key, value in result.items() if key not in ("case", "passed")}
    return f"{word} {result['case']} {json.dumps(rest)}"


def chosen(options: argparse.Namespace) -> dict[str, Group]:
    if options.timings:
        return TIMINGS
    return {
        name: group
        for name, group in GROUPS.items()
        if options.all or (name in options.case if options.case else group.by_default)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--case", action="append", choices=sorted(GROUPS), help="a group of cases; without any, about 7 minutes' worth"
    )
    parser.add_argument("--only", action="append", help="of these groups, the cases of this name alone")
    parser.add_argument("--all", action="store_true", help="every group")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    parser.add_argument("--proxy", type=Path, default=ROOT / "build/release/bin/kvferry-proxy")
    parser.add_argument("--timings", action="store_true", help="measure, and write the table of docs/performance.md")
    parser.add_argument("--logs", type=Path, help="where the servers' logs go; default: a folder that is told")
    parser.add_argument("--minutes", type=float, default=120, help="the run has failed when it takes longer")
    options = parser.parse_args()
    groups = chosen(options)
    folder = options.logs or Path(tempfile.mkdtemp(prefix="kvferry-vllm-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"logs in {folder}; {versions()}", file=sys.stderr)
    end_after(options.minutes)
    results: list[dict[str, Any]] = []
    with one_group_of_the_scheduler():
        try:
            for name, group in groups.items():
                run_group(name, group, options, folder, results)
        except TimeOverError as error:
            tell(results, {"case": "what was left", "passed": False, "failure": str(error)}, options.json)
        finally:
            for server in LIVE:
                server.kill()
    failed = sum(not result["passed"] for result in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    if options.timings and not failed:
        report.write(ROOT / "docs/performance.md", dict(zip(groups, results, strict=True)))
    return 1 if failed else 0


sys.exit(main())
