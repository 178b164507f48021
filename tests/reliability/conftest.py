import pytest

from reliability import jobs


@pytest.fixture
def job(tmp_path):
    """`job(*flags, processes=1, fault="none")` starts one; all are ended with the test."""
    started = []

    def start(*flags, **options):
        started.append(jobs.Job(tmp_path, *flags, **options))
        return started[-1]
    yield start
    for one in started:
        one.kill()
