"""What the rest of the float network makes of a unit's output, where that counts in its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, fx

from datafree.graph.activations import Rows, passed
from datafree.graph.blocks import output_name, reaches, subgraph
from datafree.graph.outputs import heads_of
from datafree.graph.taps import last_linear
from datafree.losses import Heads
from datafree.reconstruction._error import output_error, prediction_error
from datafree.reconstruction._schedule import Stage


@dataclass(frozen=True)
class Behind:
    """The float network from where a unit ends to a later place, and what it should give there.

    Attributes:
        network: from the unit's output to that place.
        wanted: what the float network has there, of all images.
        error: of the two, a scalar.
        weight: factor on it.
    """

    network: fx.GraphModule
    wanted: Rows
    error: Callable[[Tensor, Tensor], Tensor]
    weight: float

    def loss(self, outputs: Tensor, index: Tensor) -> Tensor:
        """The weighted error behind `outputs`, those of the images `index`: a scalar."""
        return self.weight * self.error(self.network(outputs), self.wanted[index])


@dataclass(frozen=True)
class Later:
    """What the float network has at the places that count, of all images.

    Attributes:
        folded: the float network.
        stage: which of them count, and how much.
        answers: it returns; None where they do not count.
        features: its last linear layer reads; None where they do not count.
    """

    folded: fx.GraphModule
    stage: Stage
    answers: Rows | None
    features: Rows | None

    @classmethod
    def of(cls, folded: fx.GraphModule, images: Rows, stage: Stage, limit: int) -> Later:
        """Pass all images through the network once for each place that counts.

        Args:
            folded: the float network; has a linear layer where features count.
            images: all of them.
            stage: which places count.
            limit: bytes that values of a place may take in memory.
        """
        answers = passed(folded, images, limit) if stage.prediction else None
        features = None
        if stage.features:
            (start,) = folded.graph.find_nodes(op="placeholder")
            whole = subgraph(folded, start.name, features_name(folded))
            features = passed(whole, images, limit)
        return cls(folded, stage, answers, features)

    def behind(self, end: str) -> tuple[Behind | None, Behind | None]:
        """Answers and features behind the node `end`, a cut; None where they do not count there."""
        answers = features = None
        if self.answers is not None:
            rest = subgraph(self.folded, end, output_name(self.folded))
            error = _divergence(self.stage.temperature, heads_of(self.folded))
            answers = Behind(rest, self.answers, error, self.stage.prediction)
        if self.features is not None and reaches(self.folded, end, features_name(self.folded)):
            rest = subgraph(self.folded, end, features_name(self.folded))
            features = Behind(rest, self.features, output_error, self.stage.features)
        return answers, features


def features_name(folded: fx.GraphModule) -> str:
    """Name of the node whose value the last linear layer of `folded` reads."""
    path = last_linear(folded)
    assert path is not None  # noqa: S101 - `Reconstructor.check` refuses such networks
    *_, layer = folded.graph.find_nodes(op="call_module", target=path)
    return layer.all_input_nodes[0].name


def _divergence(temperature: float, heads: Heads) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda answers, wanted: prediction_error(answers, wanted, temperature, heads)
