"""scripts/demo --vllm: a prefiller, a decoder and the proxy, of which two are real vLLM servers on the CPU."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from asking import Answer, ask, prompts
from checking import forget_prefixes
from servers import HERE, ROOT, Deployment, Setup, used_blocks

from chain.show import Show

PORT = 8000
QUESTIONS = 8


@dataclass
class Timed:
    answer: Answer
    seconds: float


def timed(port: int, prompt: list[int], stream: bool) -> Timed:
    began = time.monotonic()
    answer = ask(port, prompt, stream=stream)
    return Timed(answer, time.monotonic() - began)


def compare(deployment: Deployment, show: Show) -> bool:
    """Asks the decoder alone, which then computes everything itself, and the proxy."""
    wanted = prompts(QUESTIONS, seed=11, shortest=200, longest=1800)
    show.step(f"request {len(wanted)} prompts to one vLLM server, then through the proxy")
    for port in (deployment.decoder.port, deployment.proxy.port):
        ask(port, wanted[0][:20])  # a server's first request compiles
    forget_prefixes(deployment.decoder)
    alone = [timed(deployment.decoder.port, prompt, stream=False) for prompt in wanted]
    forget_prefixes(deployment.decoder)
    split = [timed(deployment.proxy.port, prompt, i % 2 == 1) for i, prompt in enumerate(wanted)]
    rows = []
    same = 0
    for prompt, one, two in zip(wanted, alone, split, strict=True):
        equal = one.answer.equals(two.answer)
        same += equal
        took = [f"{one.seconds * 1e3:.0f} ms", f"{two.seconds * 1e3:.0f} ms"]
        rows.append([f"{len(prompt)} tokens", *took, show.verdict(equal, "same" if equal else "DIFFERENT")])
    show.table(["prompt", "one server", "prefiller and decoder", "answer"], rows)
    moved = deployment.decoder.metric("vllm:kvferry_read_bytes_total")
    show.line(f"moved   {moved / 1e6:.1f} MB of KV from the prefiller to the decoder")
    show.line(f"left    {used_blocks(deployment.prefiller):.0%} of the prefiller's KV cache in use")
    verdict = f"{same} of {len(wanted)} answers are the same, token by token and by log-probability"
    show.line(show.verdict(same == len(wanted), verdict))
    return same == len(wanted) and moved > 0


def invite(deployment: Deployment, show: Show) -> None:
    body = json.dumps({"model": "tiny", "prompt": list(range(2, 200)), "max_tokens": 16})
    url = f"http://127.0.0.1:{deployment.proxy.port}"
    show.line("\nTry it (the weights are random: the answer means nothing, but it hangs on every byte of KV):")
    show.line(f"  curl {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'")
    show.line("Ctrl-C ends it.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo --vllm")
    parser.add_argument("--once", action="store_true", help="ends instead of staying up")
    parser.add_argument("--port", type=int, default=PORT, help="of the proxy")
    options = parser.parse_args()
    show = Show(sys.stdout)
    stop = threading.Event()

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    folder = Path(tempfile.mkdtemp(prefix="kvferry-vllm-demo-"))
    model = folder / "model"
    try:
        subprocess.run([sys.executable, str(HERE / "make_model.py"), str(model)], check=True)
        show.step(f"start   two vLLM servers on the CPU, which takes a minute or more; their logs are in {folder}")
        began = time.monotonic()
        proxy = ROOT / "build/release/bin/kvferry-proxy"
        with Deployment(Setup(), folder, model, proxy, proxy_port=options.port) as deployment:
            show.step(f"ready   after {time.monotonic() - began:.0f} s")
            good = compare(deployment, show)
            if not options.once:
                invite(deployment, show)
                stop.wait()
            return 0 if good else 1
    except RuntimeError as error:  # a server did not start
        show.note(str(error))
        return 1
    except KeyboardInterrupt:
        show.line("\nending ...")
        return 130


if __name__ == "__main__":
    sys.exit(main())
