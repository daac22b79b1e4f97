"""The Celery application carries JSON wake-ups that survive a lost worker."""

import pytest
from kombu.exceptions import ContentDisallowed
from kombu.serialization import dumps, loads

from lorauter_worker.adapters.celery_wakeups import _TASKS
from lorauter_worker.tasks.app import HARD_LIMIT_SECONDS, QUEUE_OF, SOFT_LIMIT_SECONDS, create_app
from lorauter_worker.tasks.drain import Child, register_tasks


@pytest.fixture
def app():
    return create_app("redis://127.0.0.1:1/0", 3.0)


def test_messages_come_back_when_a_worker_is_lost(app):
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost
    assert app.conf.worker_prefetch_multiplier == 1
    options = app.conf.broker_transport_options
    assert options["visibility_timeout"] > HARD_LIMIT_SECONDS > SOFT_LIMIT_SECONDS
    assert options["unacked_restore_interval"] * options["unacked_restore_throttle"] <= 10


def test_only_json_is_taken_when_a_message_arrives(app):
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"
    content_type, encoding, payload = dumps({"x": 1}, serializer="pickle")
    with pytest.raises(ContentDisallowed):
        loads(payload, content_type, encoding, accept=app.conf.accept_content)


def test_every_task_has_its_queue_when_registered(app):
    register_tasks(app, lambda: Child(None, None))
    assert set(QUEUE_OF) <= set(app.tasks)
    assert set(_TASKS.values()) == set(QUEUE_OF)
    for name, queue in QUEUE_OF.items():
        assert app.amqp.router.route({}, name)["queue"].name == queue
        app.tasks[name]()
