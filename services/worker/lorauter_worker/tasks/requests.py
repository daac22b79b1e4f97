"""What Celery's main process does with a wake-up whose end the broker cannot be told of."""

from __future__ import annotations

from celery import Task
from celery.worker.request import Request
from kombu.transport import virtual


class WakeupRequest(Request):  # type: ignore[misc]
    """A request that gives its place back even if the broker is away when its task ends.

    kombu only logs that it could not acknowledge, and counts the message as unacknowledged for ever: with
    one message at a time the worker would take no other, and never notice that its connection broke.
    """

    def acknowledge(self) -> None:
        """See Request."""
        told_before = self.acknowledged
        try:
            super().acknowledge()
        finally:
            if not told_before:
                self._give_place_back()

    def reject(self, requeue: bool = False) -> None:
        """See Request."""
        told_before = self.acknowledged
        try:
            super().reject(requeue=requeue)
        finally:
            if not told_before:
                self._give_place_back()

    def _give_place_back(self) -> None:
        message = self._message
        if message is not None and not message.acknowledged and message.channel is not None:
            virtual.QoS.ack(message.channel.qos, message.delivery_tag)  # type: ignore[no-untyped-call]


class WakeupTask(Task):  # type: ignore[misc]
    """A task whose requests are WakeupRequest's."""

    Request = WakeupRequest
