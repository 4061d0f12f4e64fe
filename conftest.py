"""How the tests are shared among processes, with one thread in each; `pytest -n 0` runs all of them in one."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the processes that tests start inherit it

settings.register_profile("no hurry", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no hurry")  # an example is slow where others use the cores


def pytest_xdist_auto_num_workers(config):
    """One more than the cores, since some tests wait. A selection runs in this process, for -s and debuggers."""
    everything = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    return (os.cpu_count() or 1) + 1 if everything else 0
