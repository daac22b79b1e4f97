"""Pure rules of the worker: no database, no network, no clock."""
