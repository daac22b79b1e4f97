"""Structured logs. Prompts and secrets are never logged."""

from __future__ import annotations

import logging
import sys

import structlog

from lorauter import tracing

Logger = structlog.stdlib.BoundLogger


def configure_logging(service: str, level: str = "info", log_format: str = "json") -> None:
    """Sends all logs, the standard library's too, to stderr as one line each."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _in_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def _in_trace(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Names the trace and the span that a line was written in."""
    if (found := tracing.ids()) is not None:
        event["trace_id"], event["span_id"] = found
    return event


def get_logger(name: str) -> Logger:
    """Returns a logger whose events are dotted keys: ``service.noun.verb_past``."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger
