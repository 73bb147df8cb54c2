"""Cells as tasks of a Ray cluster, which begins those of a lost worker or machine again."""

from __future__ import annotations

import importlib
import os
import socket
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datafree.bounds import first_line
from datafree.errors import ConfigError
from datafree.sweeps.computing import Job, Outcome, compute_elsewhere
from datafree.sweeps.options import SweepOptions

_OWN = "local"  # what Ray calls a cluster that it starts for one program
_ANSWER = 10.0  # seconds a cluster has to take a connection
_ALL_AT_ONCE = 1000  # tasks that wait with Ray; more need not


def outcomes(jobs: Sequence[Job], options: SweepOptions) -> Generator[Outcome]:
    """Compute `jobs`, a task each.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    address = options.address or os.environ.get("RAY_ADDRESS") or _OWN
    ray = _library(address)
    with _connected(ray, address, options, len(jobs)):
        task = ray.remote(
            num_cpus=options.cpus_per_task, num_gpus=options.gpus_per_task,
            max_retries=options.retries,
        )(compute_elsewhere)  # fmt: skip
        waiting: Iterator[Job] = iter(jobs)
        pending: dict[Any, Job] = {}
        while True:
            for job in waiting:
                pending[task.remote(job)] = job
                if len(pending) >= (options.workers or _ALL_AT_ONCE):
                    break
            if not pending:
                return
            for done in ray.wait(list(pending))[0]:
                yield _outcome(ray, done, pending.pop(done))


def _outcome(ray: Any, done: Any, job: Job) -> Outcome:
    try:
        found = ray.get(done)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        text = f"Ray gave it up after {job.retries} retries: {type(error).__name__}"
        return Outcome(job.name, "failed", error=f"{text}: {first_line(cause)}")
    assert isinstance(found, Outcome)  # noqa: S101 - the task returns nothing else
    return found


def _library(address: str) -> Any:
    """Ray, set up for the cluster at `address`: it reads its environment when it is imported."""
    if address == _OWN:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    elif address != "auto" and _token_known():  # only `auto` looks for one by itself
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "engine ray needs the library Ray: pip install 'datafree[ray]', or leave --engine out"
        ) from None


@contextmanager
def _connected(ray: Any, address: str, options: SweepOptions, jobs: int) -> Generator[None]:
    """Join a cluster meanwhile, or start one for this call; one that is joined already is used."""
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if address == _OWN:
        own = {"include_dashboard": False}
        if options.workers is not None:
            own["num_cpus"] = min(options.workers, jobs) * options.cpus_per_task
    try:
        _check_answers(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings to come that concern nobody here
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"address: no Ray cluster at {address}: {first_line(error)}; start one with ray start"
            " --head, or leave --address out (of another machine it may want RAY_AUTH_TOKEN)"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse at once a HOST:PORT where nobody listens: Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


def _token_known() -> bool:
    """Whether this user has a token of a cluster, where Ray keeps it."""
    kept = Path.home() / ".ray" / "auth_token"
    return kept.is_file() or any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")))
