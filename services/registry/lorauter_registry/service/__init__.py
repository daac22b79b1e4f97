"""The registry's calls, one method for each RPC; both transports call nothing else."""

from lorauter_registry.service.registry import Registry

__all__ = ["Registry"]
