"""Structured logs: for people on a terminal, one JSON object a line otherwise."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError

LEVELS = ("debug", "info", "warning", "error")


def set_up(level: str) -> FilteringBoundLogger:
    """Sends logs to stderr at `level` and above."""
    if level not in LEVELS:
        raise VsError("VS1040", Kind.INVALID, f"log level {level!r}: one of {', '.join(LEVELS)}")
    terminal = sys.stderr.isatty()
    # Where a fault was, and never what the variables there held: that may be a secret.
    bare = ExceptionDictTransformer(show_locals=False)
    people = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
            *([] if terminal else [structlog.processors.ExceptionRenderer(bare)]),
            people if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger
