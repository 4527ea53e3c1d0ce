"""When the parts of the loss take part: together, in steps, with linear ramps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """What a schedule multiplies the weights of the first three terms by."""

    discriminative: float = 1.0
    restorative: float = 1.0
    adversarial: float = 1.0


ONES = Factors()


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A factor from 0 to 1 for each step: 0, a linear rise, 1, a linear fall, 0.

    ``min(1, (step + 1 - start) / rise, (end - step) / fall)`` from `start` on and
    before `end`, otherwise 0. It never falls before the rise has ended, if
    ``start + rise <= end - fall``.

    Args:
        start: First step with a factor above 0.
        rise: Steps until it is 1; by default it is 1 at once.
        end: First step with a factor of 0 again; by default there is none.
        fall: Steps before the end, in which it falls.

    Raises:
        ValueError: If a number is negative, or `start` lies behind `end`.

    Examples:
        >>> from lightly_dira.training import Ramp
        >>> [Ramp(start=2, rise=4)(step) for step in range(7)]
        [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    start: float = 0.0
    rise: float = 0.0
    end: float = math.inf
    fall: float = 0.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not (self.start >= 0 and self.rise >= 0 and self.fall >= 0):
            raise ValueError(f"Ramp: numbers must be at least 0, got {self}.")
        if math.isnan(self.end):
            raise ValueError(f"Ramp: end must be a number, got {self}.")
        if self.end < self.start:
            raise ValueError(f"Ramp: start must not lie behind end, got {self}.")

    def __call__(self, step: float) -> float:
        """Returns the factor of a step."""
        if not self.start <= step < self.end:
            return 0.0
        rising = (step + 1 - self.start) / self.rise if self.rise else 1.0
        falling = (self.end - step) / self.fall if self.fall else 1.0
        return float(min(1.0, rising, falling))


@dataclasses.dataclass(frozen=True)
class _BegunRamp(Ramp):
    """A ramp in steps that began before the run did, as its epochs became longer."""

    def __post_init__(self) -> None:
        """Accepts a negative start: it comes from a `Ramp` that was checked."""


def _ramp(start: float, rise: float, end: float, fall: float) -> Ramp:
    return (Ramp if start >= 0 else _BegunRamp)(start, rise, end, fall)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The factor of each term's weight, at each step of the optimiser.

    Each is a `Ramp` or any function of the step that returns at least 0. The adversary
    takes part only while restoration does, and the stage of `DiRA` follows from the
    factors: "di" while restoration has the factor 0, then "dir" while the adversary
    has.

    Args:
        discriminative: Factor of ``discriminative_weight``.
        restorative: Factor of ``restorative_weight``.
        adversarial: Factor of ``adversarial_weight``.

    Examples:
        >>> import torchvision
        >>> from lightly_dira import DiRA
        >>> from lightly_dira.training import Ramp, Schedule
        >>> backbone = torchvision.models.resnet18()
        >>> schedule = Schedule.stepwise(1000)  # ((D) + R) + A
        >>> DiRA(backbone, schedule=schedule).stage, schedule(500)
        ('di', Factors(discriminative=1.0, restorative=1.0, adversarial=1.0))
        >>> schedule = Schedule(restorative=Ramp(start=100, rise=200, end=900))
    """

    discriminative: Callable[[int], float] = Ramp()
    restorative: Callable[[int], float] = Ramp()
    adversarial: Callable[[int], float] = Ramp()

    @classmethod
    def joint(cls) -> Schedule:
        """All three parts from the first step on, as in the paper's method."""
        return cls()

    @classmethod
    def starting(
        cls, restorative: float = 0, adversarial: float | None = 0
    ) -> Schedule:
        """Parts that start at these steps and do not end.

        Args:
            restorative: Steps before the restoration starts, at least 0.
            adversarial: Steps before the adversary starts; None for never.

        Raises:
            ValueError: If a number is below 0.
        """
        never = math.inf if adversarial is None else adversarial
        if not (restorative >= 0 and never >= 0):
            raise ValueError(
                "DiRA: restorative_start and adversarial_start must be at least 0, got "
                f"{restorative} and {adversarial}."
            )
        return cls(restorative=Ramp(restorative), adversarial=Ramp(never))

    @classmethod
    def stepwise(
        cls,
        total_steps: float,
        *,
        restorative: float = 0.25,
        adversarial: float = 0.5,
        ramp: float = 0.0,
    ) -> Schedule:
        """One part after the other, ((D) + R) + A, as in Stepwise [0].

        Args:
            total_steps: Steps of the optimiser in the whole run, above 0.
            restorative: Where restoration starts, as a fraction of the run.
            adversarial: Where the adversary starts.
            ramp: Fraction of the run in which either rises linearly.

        Raises:
            ValueError: If a number is out of range.

        - [0]: Stepwise Incremental Pre-training, 2022,
          https://doi.org/10.1007/978-3-031-16852-9_7
        """
        if not (
            total_steps > 0 and 0 <= restorative <= adversarial <= 1 and 0 <= ramp <= 1
        ):
            raise ValueError(
                "Schedule.stepwise: expected total_steps above 0 and 0 <= restorative "
                f"<= adversarial <= 1, 0 <= ramp <= 1, got {total_steps}, "
                f"{restorative}, {adversarial} and {ramp}."
            )
        return cls(
            restorative=Ramp(restorative * total_steps, ramp * total_steps),
            adversarial=Ramp(adversarial * total_steps, ramp * total_steps),
        )

    def without_adversary(self) -> Schedule:
        """Returns this schedule with an adversary that never starts."""
        return dataclasses.replace(self, adversarial=Ramp(math.inf))

    def __call__(self, step: int) -> Factors:
        """Returns the factors of a step.

        Raises:
            ValueError: If a function returns a factor that is negative or not finite.
        """
        factors = Factors(
            self.discriminative(step), self.restorative(step), self.adversarial(step)
        )
        for name, factor in factors._asdict().items():
            if not 0 <= factor < math.inf:
                raise ValueError(
                    f"DiRA: the schedule's {name} factor must be finite and at least "
                    f"0, got {factor} at step {step}."
                )
        if not factors.restorative:
            return factors._replace(adversarial=0.0)
        return factors

    def from_epochs(self, steps: float, begun: float, epoch: int) -> Schedule:
        """Returns a schedule given in epochs as one in steps.

        Args:
            steps: Steps of the optimiser in an epoch.
            begun: The step at which the current epoch began.
            epoch: The number of the current epoch.

        Raises:
            TypeError: If a part is not a `Ramp`.
        """

        def at(place: float) -> float:
            return begun + (place - epoch) * steps

        ramps = {}
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if not isinstance(part, Ramp):
                raise TypeError(
                    "DiRA: a schedule in epochs is made of `Ramp`, got "
                    f"{type(part).__name__} for {field.name}. Give functions of the "
                    "step in configure_dira, DiRA(..., schedule=...)."
                )
            ramps[field.name] = _ramp(
                at(part.start), part.rise * steps, at(part.end), part.fall * steps
            )
        return Schedule(**ramps)

    def state(self) -> Tensor:
        """Returns start, rise, end and fall of each part, (3, 4).

        They are not numbers for parts that are not ramps.
        """
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        rows = [
            dataclasses.astuple(part) if isinstance(part, Ramp) else _NO_RAMP
            for part in parts
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def with_state(self, state: Tensor) -> Schedule:
        """Returns this schedule with the ramps that `state` returned."""
        names = [field.name for field in dataclasses.fields(self)]
        ramps = dict(zip(names, state.tolist(), strict=True))
        known = {n: row for n, row in ramps.items() if not math.isnan(row[0])}
        return dataclasses.replace(self, **{n: _ramp(*row) for n, row in known.items()})


_NO_RAMP = (math.nan,) * 4


def starts(part: Callable[[int], float]) -> bool:
    """Whether a part of the schedule takes part, now or later."""
    return not (isinstance(part, Ramp) and math.isinf(part.start))
