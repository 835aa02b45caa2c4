"""A GPU by its driver's own calls: the library that KVFERRY_CUDA_DRIVER names."""

import ctypes
import os

EVENT_DISABLE_TIMING = 2
STREAM_NON_BLOCKING = 1
HOST_PORTABLE_AND_MAPPED = 3


class Gpu:
    """The first one, by the driver's own calls; `call` fails unless they succeed."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(os.environ["KVFERRY_CUDA_DRIVER"])
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        assert status == 0, f"{name}: {status}"

    def allocate(self, length: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(length))
        return address.value

    def store(self, address: int, data: bytes) -> None:
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), data, ctypes.c_size_t(len(data)))

    def load(self, address: int, length: int) -> bytes:
        into = ctypes.create_string_buffer(length)
        self.call("cuMemcpyDtoH_v2", into, ctypes.c_uint64(address), ctypes.c_size_t(length))
        return into.raw

    def launch(self) -> "Kernel":
        """Work that goes on until it is told to end."""
        return Kernel(self)


class Kernel:
    """A stream that waits for a word, and an event behind it."""

    def __init__(self, gpu: Gpu) -> None:
        stream, self._word, event = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        gpu.call("cuMemHostAlloc", ctypes.byref(self._word), ctypes.c_size_t(4), HOST_PORTABLE_AND_MAPPED)
        ctypes.memset(self._word, 0, 4)
        gpu.call("cuStreamCreate", ctypes.byref(stream), STREAM_NON_BLOCKING)
        address = ctypes.c_uint64(self._word.value or 0)
        gpu.call("cuStreamWaitValue32_v2", stream, address, ctypes.c_uint32(1), 0)
        gpu.call("cuEventCreate", ctypes.byref(event), EVENT_DISABLE_TIMING)
        gpu.call("cuEventRecord", event, stream)
        self.event = event.value or 0

    def end(self) -> None:
        ctypes.memmove(self._word, (1).to_bytes(4, "little"), 4)
