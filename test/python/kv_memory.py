"""A small KV cache in a numpy array: its layout, what each byte of it must be, and reading it back."""

import numpy as np

import kvferry

LAYERS, BLOCKS, HEADS, TOKENS, ROW = 2, 64, 4, 8, 32


class Cache:
    """[layer][block][head][token][row], this rank's heads only."""

    def __init__(self, engine: kvferry.Engine, rank: kvferry.ParallelRank) -> None:
        self.rank = rank
        heads = HEADS // rank.tp_size
        self.memory = np.zeros((LAYERS, BLOCKS, heads, TOKENS, ROW), np.uint8)
        self.region = engine.register(self.memory)
        strides = self.memory.strides
        group = kvferry.KvGroup(
            block_tokens=TOKENS,
            block_count=BLOCKS,
            heads_total=HEADS,
            heads_local=heads,
            head_size_k=ROW,
            head_size_v=0,
            element_bits=8,
        )
        layers = [
            kvferry.KvLayer(
                index=layer,
                name=f"layer.{layer}",
                group=0,
                k=kvferry.KvPlane(
                    region=self.region.id,
                    base=layer * strides[0],
                    block_stride=strides[1],
                    head_stride=strides[2],
                    token_stride=strides[3],
                ),
            )
            for layer in range(LAYERS)
        ]
        self.layout = kvferry.KvLayout(rank=rank, layers_total=LAYERS, groups=[group], layers=layers)

    def fill(self) -> None:
        """As if the model had written it: each row depends on layer, block, head and token."""
        heads = self.memory.shape[2]
        first = self.rank.tp_rank * heads
        layer, block, head, token = np.ogrid[:LAYERS, :BLOCKS, first : first + heads, :TOKENS]
        self.memory[:] = rows(layer, block, head, token)

    def holds(self, mine: list[int], theirs: list[int], tokens: range) -> bool:
        """Whether these blocks hold the owner's blocks, in these tokens of the request."""
        heads = self.memory.shape[2]
        first = self.rank.tp_rank * heads
        layer, head = np.ogrid[:LAYERS, first : first + heads]
        return all(
            np.array_equal(
                self.memory[:, mine[token // TOKENS], :, token % TOKENS],
                rows(layer, theirs[token // TOKENS], head, token % TOKENS),
            )
            for token in tokens
        )


def rows(layer: np.ndarray, block: np.ndarray | int, head: np.ndarray, token: np.ndarray | int) -> np.ndarray:
    seed = ((layer * BLOCKS + block) * HEADS + head) * TOKENS + token
    drawn: np.ndarray = ((seed[..., None] * 31 + np.arange(ROW) * 7) % 251).astype(np.uint8)
    return drawn
