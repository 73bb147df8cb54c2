"""One run: what `config.yaml` holds, and what stages ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from datafree.config.base import Method
from datafree.config.merging import merge
from datafree.config.options import (
    METHODS,
    ImageCount,
    ImageFile,
    ModelConfig,
    Networks,
    QuantizeOptions,
    TeacherOptions,
)
from datafree.config.parsing import named_methods
from datafree.config.protocols import PROTOCOLS, departures
from datafree.config.scheme import Scheme
from datafree.config.widths import input_of, weights_of, width_for
from datafree.user_code import is_code


class RunConfig(ImageFile, ImageCount, QuantizeOptions, Networks):
    """One run of the whole pipeline: what `config.yaml` holds.

    A distillation is the training `distill` with a `student`.
    """

    @model_validator(mode="before")
    @classmethod
    def _instances(cls, values: Any) -> Any:
        """Methods given as objects bring their options; `images` may name a generator.

        What a protocol settles stands beneath.
        """
        if not isinstance(values, dict):
            return values
        named = named_methods(values, METHODS)
        name = str(named.get("protocol"))
        return merge({**PROTOCOLS[name], "protocol": name}, named) if name in PROTOCOLS else named

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in METHODS:
            if getattr(self, name) == "none" and getattr(self, f"{name}_options"):
                raise ValueError(f"{name}_options were given without a {name}: name one")
        if not self.mixed and self.candidate_bits != self._default("candidate_bits"):
            raise ValueError("candidate_bits go with average_bits or budget: give one of them")
        if self.photos is None and self.photo_share != self._default("photo_share"):
            raise ValueError("photo_share goes with photos: name a folder of pictures")
        if self.photos is not None and self.image_file is not None:
            raise ValueError(
                "photos stand among images that are made, and images names a file: give one of them"
            )
        if self.tuning is None:
            self._no_training()
        else:
            self._training()
        if self.float_student and self.student is None:
            raise ValueError("float_student goes with student: name a network to distill into")
        if self.float_student and (self.layer_bits or self.keep_float):
            raise ValueError(
                "layer_bits and keep_float are for a quantized student, and this one stays in"
                " float: give its bits too"
            )
        return self

    def _default(self, name: str) -> Any:
        return type(self).model_fields[name].default

    def _no_training(self) -> None:
        alone = {
            "generator": self.generator, "student": self.student,
            "precision": None if self.precision == "fp32" else self.precision,
        }  # fmt: skip
        if given := [name for name, value in alone.items() if value is not None]:
            raise ValueError(f"{given[0]} goes with training: name a method, such as dfqf")

    def _training(self) -> None:
        if self.rounding is not None and self.float_student:
            raise ValueError("a float student has no rounding to learn: leave reconstruction out")
        if self.mixed:
            raise ValueError("training has no mixed precision yet: give the bits in layer_bits")
        if self.bias_correction == "empirical":
            raise ValueError(
                "training learns biases on images itself: leave bias_correction out, or let it"
                " start from analytic"
            )
        if (self.training == "distill") != (self.student is not None):
            raise ValueError("the training distill goes with student, the network to distill into")

    # --- what stages ask of a run -------------------------------------------------------------

    @property
    def teacher(self) -> ModelConfig:
        """The network, and what was said of it."""
        told = {name: getattr(self, name) for name in TeacherOptions.model_fields}
        return ModelConfig(source=self.model, **told)

    @property
    def in_memory(self) -> bool:
        """Whether the network has no source that could be loaded again."""
        return self.model.startswith("<")

    @property
    def teacher_kept(self) -> bool:
        """Whether the network is written into the run's folder."""
        if self.keep_teacher is not None:
            return self.keep_teacher
        return self.in_memory or is_code(self.model, network=True)

    @property
    def photo_count(self) -> int:
        """Images that are photos."""
        return 0 if self.photos is None else max(1, round(self.photo_share * self.images))

    @property
    def protocol_told(self) -> str | None:
        """The protocol of the run and what it changes of that, for people; None without one."""
        if self.protocol is None:
            return None
        other = departures(self.protocol, self.model_dump())
        told = ", ".join(f"{name} {value}" for name, value in other.items())
        return f"{self.protocol} but {told}" if told else self.protocol

    @property
    def rules_told(self) -> str:
        """Layer policy and protocol in a few words: what stands beside every number."""
        protocol = self.protocol_told
        return f"policy {self.policy}" + (f", protocol {protocol}" if protocol else "")

    @property
    def companion(self) -> ModelConfig | None:
        """The network to distill into."""
        if self.student is None:
            return None
        return ModelConfig(source=self.student, weights_file=self.student_weights_file)

    @property
    def scheme(self) -> Scheme:
        """The student's numbers, with `weight_range` decided."""
        told = {name: getattr(self, name) for name in Scheme.model_fields}
        if self.weight_range == "auto":
            learned = self.rounding is not None or self.mixed
            told["weight_range"] = "mse" if learned else "minmax"
        return Scheme(**told)

    @property
    def synthesis(self) -> Method:
        """The image method."""
        return Method(name=str(self.method), options=self.method_options)

    @property
    def calibration(self) -> Method:
        """The calibrator of the activation ranges."""
        return Method(name=str(self.calibrator), options=self.calibrator_options)

    @property
    def rounding(self) -> Method | None:
        """How weights learn their rounding; None rounds to the nearest."""
        return _unless_none(self.reconstruction, self.reconstruction_options)

    @property
    def tuning(self) -> Method | None:
        """How the student is fine-tuned; None leaves its weights as quantized."""
        return _unless_none(self.training, self.training_options)

    @property
    def max_seconds(self) -> float | None:
        """Time for the whole run; None has no limit."""
        return None if self.max_time is None else float(self.max_time)

    @property
    def bias_rule(self) -> Literal["empirical", "analytic"] | None:
        """How this run corrects biases: `bias_correction` with `auto` decided."""
        if self.bias_correction == "auto":
            fewest = min((self.weights, *map(weights_of, self.layer_bits.values())))
            learned = self.rounding is not None or self.tuning is not None
            return "analytic" if fewest < 8 and not learned else None
        return None if self.bias_correction == "none" else self.bias_correction

    def with_layer_bits(self, layer_bits: Mapping[str, int]) -> RunConfig:
        """This run with the bits that were allocated to its layers, its weight ranges kept.

        Bits that it asks for inputs of layers stay.
        """
        update = {
            "layer_bits": {path: self._allocated(path, bits) for path, bits in layer_bits.items()},
            "average_bits": None, "budget": None,
            "weight_range": self.scheme.weight_range,
        }  # fmt: skip
        return self.model_copy(update=update)

    def _allocated(self, path: str, bits: int) -> int | str:
        asked = width_for(path, self.layer_bits)
        own = None if asked is None else input_of(asked[1])
        return bits if own is None else f"W{bits}A{own}"


def _unless_none(name: object, options: dict[str, Any]) -> Method | None:
    return None if name == "none" else Method(name=str(name), options=options)
