"""Nothing that is read may hang: a test that takes minutes is ended, with what it was doing on stderr."""

import faulthandler

import pytest

LIMIT = 600  # seconds; the slow forms take one of them on a quiet machine


@pytest.fixture(autouse=True)
def _no_hang():
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
