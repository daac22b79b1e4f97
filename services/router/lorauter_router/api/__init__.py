"""Transports of the router."""
