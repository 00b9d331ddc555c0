"""Pipes for PyAV to read and write, whose waits can be ended from outside.

FFmpeg calls these from inside its own work, where no exception gets through: PyAV drops Ctrl-C, and
FFmpeg takes what PyAV does not drop for damage or the end. So errors are kept here, and the caller
of FFmpeg asks for them afterwards.
"""

from __future__ import annotations

import os
import select
import stat
from typing import IO


class ReadPipe:
    """The reading end of a pipe.

    Attributes:
        stopped: set from any thread, ends the wait as if the pipe had ended.
        error: why the pipe could no longer be read.
        taken: number of bytes read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.stopped = False
        self.error: OSError | None = None
        self.taken = 0
        self._file = file
        self._interrupt: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end, or after an error."""
        try:
            while not self.stopped and self.error is None and self._interrupt is None:
                if select.select([self._file], [], [], 0.1)[0]:
                    try:
                        data = os.read(self._file.fileno(), size)
                    except BlockingIOError:  # another reader of the pipe was faster
                        continue
                    self.taken += len(data)
                    return data
        except OSError as error:
            self.error = error
        except BaseException as error:
            self._interrupt = error
        return b""

    def raise_interrupt(self) -> None:
        """Raise an error that came while FFmpeg waited and is not the pipe's fault, such as
        Ctrl-C."""
        if self._interrupt is not None:
            raise self._interrupt


class WritePipe:
    """The writing end of a pipe, or a file that is written like one.

    Attributes:
        stopped: set from any thread, ends the wait for a reader.
    """

    def __init__(self, number: int) -> None:
        self.stopped = False
        self._number = number
        self._interrupt: BaseException | None = None
        # A pipe that is ready for writing accepts this much without a wait; a file accepts
        # anything.
        waits = not stat.S_ISREG(os.fstat(number).st_mode)
        self._most = getattr(select, "PIPE_BUF", 512) if waits else 1 << 20

    def write(self, data: bytes) -> int:
        """Write all of it at once."""
        left = memoryview(data)
        try:
            while left:
                if self.stopped:
                    raise BrokenPipeError("the output was stopped")
                if os.name != "posix" or select.select([], [self._number], [], 0.1)[1]:
                    left = left[os.write(self._number, left[: self._most]) :]
        except Exception:
            raise
        except BaseException as interrupt:
            self._interrupt, self.stopped = interrupt, True
            raise BrokenPipeError("interrupted") from interrupt
        return len(data)

    def raise_interrupt(self) -> None:
        """Raise an error that came while FFmpeg waited and is not the pipe's fault, such as
        Ctrl-C."""
        if self._interrupt is not None:
            raise self._interrupt
