import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_sessionstart(session):
    """What is imported never becomes garbage; to look through it again and again took a fifth of the suite's time."""
    if hasattr(session.config, "workerinput"):  # one of several processes that share the whole suite
        import forks  # noqa: F401

        gc.collect()
        gc.freeze()
