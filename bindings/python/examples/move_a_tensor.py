"""Moves a tensor between two processes: the parent owns it, the child reads it into its own and awaits that."""

import asyncio
from multiprocessing import get_context

import numpy as np

import kvferry


async def read(address: str, span: kvferry.Span) -> None:
    with kvferry.Engine() as engine:
        tensor = np.zeros((1024, 1024), np.float32)
        with engine.register(tensor):
            outcome = await engine.read(engine.peer(address), tensor, span, notify=("thanks", b""))
        print(f"{outcome.bytes_done} bytes over {outcome.fabric}, sum {tensor.sum():.0f}")


def reader(address: str, span: kvferry.Span) -> None:
    asyncio.run(read(address, span))


if __name__ == "__main__":
    with kvferry.Engine() as engine:
        tensor = np.ones((1024, 1024), np.float32)
        with engine.register(tensor, readable=True) as region:
            child = get_context("spawn").Process(target=reader, args=(engine.address, region.span()))
            child.start()
            child.join()
        print([notification.name for notification in engine.notifications()])
