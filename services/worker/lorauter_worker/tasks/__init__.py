"""Celery: the application, its tasks, and what their processes hold."""
