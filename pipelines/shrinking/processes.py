"""Shrinks images in parallel, in processes that do not import TensorFlow."""

import collections
import concurrent.futures
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pipelines.shrinking import jpegs
from pipelines.shrinking.jpegs import ImageError, Settings, Shrunk

_Key = TypeVar("_Key")

# Requests that are under way for each process, so that none waits while the results are written.
_AHEAD = 4


def shrink_all(
    requests: Iterable[tuple[_Key, str | bytes]],
    *,
    settings: Settings,
    num_processes: int,
) -> Iterator[tuple[_Key, Shrunk | ImageError]]:
    """Yields what `jpegs.shrink` makes of each image, in the order of the requests.

    A process that an image kills is replaced, and the image counts as one that cannot be read. The
    processes write no files, and end when this one does, however it ends.

    Args:
        requests: for each image a key, which is given back, and the local path or the bytes of its
            file. They are drawn as processes become free.
        settings: the size and quality of the JPEGs.
        num_processes: the number of processes.
    """
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    processes = [_Process() for _ in range(num_processes)]
    for process in processes:
        idle.put(process)

    def shrink(source: str | bytes) -> Shrunk | ImageError:
        process = idle.get()
        try:
            return process.shrink(source, settings.max_side, settings.quality)
        finally:
            idle.put(process)

    threads = concurrent.futures.ThreadPoolExecutor(num_processes)
    under_way: collections.deque[tuple[_Key, concurrent.futures.Future]] = collections.deque()
    try:
        for key, source in requests:
            under_way.append((key, threads.submit(shrink, source)))
            if len(under_way) >= _AHEAD * num_processes:
                first, future = under_way.popleft()
                yield first, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.end()


class _Process:
    """A process that runs `jpegs.main`, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def shrink(self, source: str | bytes, max_side: int, quality: int) -> Shrunk | ImageError:
        if self._process is None:
            # As a file, because `multiprocessing` would import the main module of this process,
            # and `-m` would look for the package in the working directory. -P keeps the modules
            # beside the file from hiding others of the same names.
            self._process = subprocess.Popen(
                [sys.executable, "-P", os.path.abspath(jpegs.__file__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((source, max_side, quality), process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            process.kill()
            self.end()
            return ImageError(
                f"ended the process that decoded it (status {process.returncode}), as damaged "
                "data or a lack of memory can"
            )
        return ImageError(answer) if isinstance(answer, str) else Shrunk(*answer)

    def end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.communicate()
