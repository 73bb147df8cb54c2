"""How a sweep is carried out: where its cells are computed, and where they go."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from datafree.config import Frozen
from datafree.config.fields import Shown


def _shard(value: Any) -> Any:
    """The text ``i/n`` as two numbers.

    Raises:
        ValueError: it is none, or there is no such part.
    """
    if not isinstance(value, str):
        return value
    part, slash, parts = value.partition("/")
    if not (slash and part.strip().isdecimal() and parts.strip().isdecimal()):
        raise ValueError(f"{value!r} is no part of a sweep: write 0/4, the first of four")
    return int(part), int(parts)


class SweepOptions(Frozen):
    """Where and how cells are computed."""

    panel: ClassVar[str] = "Machines"

    engine: Literal["local", "ray"] = "local"
    """What computes cells: `local` are processes on this machine, `ray` tasks of a Ray cluster
    (extra `ray`)."""
    address: Annotated[str | None, Shown("$RAY_ADDRESS, or a cluster for this call", "ADDRESS")] = (
        None
    )
    """Ray cluster to join: HOST:PORT, or auto for the one on this machine."""
    workers: Annotated[int | None, Field(ge=1), Shown("as many as there are processors")] = None
    """Cells computed at the same time; 1 computes them in this process. A network that needs much
    memory wants fewer, and so does a GPU."""
    cpus_per_task: int = Field(default=1, ge=1)
    """Processors of a cell, which are its threads too. Students of large networks depend on their
    number in their last bits, on nothing else of all this."""
    gpus_per_task: float = Field(default=0.0, ge=0)
    """GPUs of a cell, which Ray gives out: 1, or 0.5 for two cells on one."""
    retries: int = Field(default=2, ge=0)
    """How often a cell is begun again whose process died: killed, out of memory, a lost node."""
    shard: Annotated[tuple[int, int] | None, BeforeValidator(_shard), Shown("all cells", "I/N")] = (
        None
    )
    """Compute one of N parts only, the first is 0/N: one part for each job of a batch system. Merge
    the folders afterwards."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.engine == "local":
            if self.address is not None:
                raise ValueError("address is that of a Ray cluster: add engine ray")
            if self.gpus_per_task:
                raise ValueError("gpus_per_task are given out by Ray: add engine ray")
        if self.shard is not None and not self.shard[0] < self.shard[1]:
            part, parts = self.shard
            raise ValueError(
                f"shard: there is no part {part}/{parts}: they are 0/{parts} to"
                f" {max(parts - 1, 0)}/{parts}"
            )
        return self
