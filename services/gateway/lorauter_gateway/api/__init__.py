"""Transports: each translates its dialect and nothing more."""
