"""Adapters of the router's ports."""
