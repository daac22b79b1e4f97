"""Real PostgreSQL, Valkey and index processes from wheels, on loopback, with nothing to install by hand."""
