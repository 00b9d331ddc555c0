"""Exceptions that DiT-Head raises on purpose. Each message says what was expected, what was found
and what to do."""

from __future__ import annotations


class DitheadError(Exception):
    """Base of every error that DiT-Head raises on purpose.

    Args:
        message: what was expected, and what was found.
        hint: what to do; the error's text ends with it.
        stage: the stage of a stream that failed. frame: the frame it was working on, from 0.
    """

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        stage: str | None = None,
        frame: int | None = None,
    ) -> None:
        super().__init__(message if hint is None else f"{message}: {hint}")
        self.message = message
        self.hint = hint
        self.stage = stage
        self.frame = frame


class ConfigError(DitheadError):
    """A configuration, preset or option is invalid."""


class CheckpointError(DitheadError):
    """A checkpoint is missing, damaged, or does not fit its configuration."""


class MediaError(DitheadError):
    """A video or audio file cannot be read or written, or contains nothing usable."""


class ExportError(DitheadError):
    """A graph could not be exported, or the exported file does not match PyTorch."""


class BackendUnavailable(DitheadError):
    """A requested back end or optional package is not installed or not usable here."""


class StreamError(DitheadError):
    """A stage of a running stream failed."""
