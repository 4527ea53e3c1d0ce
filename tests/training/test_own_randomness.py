"""Runs resume to the bit, whatever draws the order of the data, and the data."""

from __future__ import annotations

import functools
import random
import warnings
from collections import deque
from pathlib import Path

import albumentations
import monai.transforms
import numpy as np
import pytest
import torch
from lightning_modules import DiRASimSiam, Images, assert_same, state, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from resuming import Dimmed, assert_resumes, fit, loaded
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from lightly_dira.training.own_randomness import OwnRandomness

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


class Own(Sampler):
    """Draws from generators of its own, and counts its epochs."""

    def __init__(self, kind: str) -> None:
        self.kind, self.epoch = kind, 0
        self.torch = torch.Generator().manual_seed(3)
        self.numpy = np.random.default_rng(3)
        self.python = random.Random(3)

    def __len__(self) -> int:
        return 24

    def __iter__(self):
        self.epoch += 1
        if self.kind == "torch":
            return iter(torch.randperm(24, generator=self.torch).tolist())
        if self.kind == "numpy":
            return iter(self.numpy.permutation(24).tolist())
        if self.kind == "python":
            return iter(self.python.sample(range(24), 24))
        return iter(random.Random(self.epoch).sample(range(24), 24))


class Counting(Sampler):
    """Keeps its count in a list, and stands inside a batch sampler of its own."""

    def __init__(self) -> None:
        self.counts = [0]

    def __len__(self) -> int:
        return 24

    def __iter__(self):
        self.counts[0] += 1
        return iter(random.Random(self.counts[0]).sample(range(24), 24))


class Reseeded(Sampler):
    """Counts from an argument, as it is asked for an order."""

    def __init__(self, length: int, epoch: int = 0) -> None:
        self.length, self.epoch = length, epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        self.epoch += 1
        return iter(random.Random(self.epoch).sample(range(self.length), self.length))


class Growing(BatchSampler):
    """Batches of six that become batches of four, in the second epoch."""

    def __init__(self) -> None:
        super().__init__(range(24), 6, False)
        self.begun = 0

    def __len__(self) -> int:
        return 6  # as many as Lightning is to take

    def __iter__(self):
        self.begun += 1
        self.batch_size = 4 if self.begun > 1 else 6
        batches = [*super().__iter__()]
        return iter([*batches, *batches][:6])


class OwnBatches(Sampler):
    def __init__(self) -> None:
        self.inner = Counting()

    def __len__(self) -> int:
        return 6

    def __iter__(self):
        order = list(self.inner)
        return iter([order[start : start + 4] for start in range(0, 24, 4)])


class Live(Counting):
    """Returns the very dict that it goes on changing."""

    def __init__(self) -> None:
        self.state = {"epochs": 0}

    def __iter__(self):
        self.state["epochs"] += 1
        return iter(random.Random(self.state["epochs"]).sample(range(24), 24))

    def state_dict(self):
        return self.state

    def load_state_dict(self, saved) -> None:
        self.state = dict(saved)


class Stateful(Own):
    """Saves itself, as samplers of torchdata do."""

    def state_dict(self):
        return {"epochs": self.epoch}

    def load_state_dict(self, saved) -> None:
        self.epoch = saved["epochs"]


class Albumentations:
    def __init__(self, **options) -> None:
        self.compose = albumentations.Compose(
            [albumentations.RandomBrightnessContrast(p=1.0)], **options
        )

    def __call__(self) -> float:
        return self.compose(image=np.full((2, 2), 0.5, np.float32))["image"].mean()


class Monai:
    def __init__(self, seed: int | None) -> None:
        self.transform = monai.transforms.RandScaleIntensity(0.5, prob=1.0)
        if seed is not None:
            self.transform.set_random_state(seed)

    def __call__(self) -> float:
        return float(self.transform(torch.ones(1, 2, 2)).mean()) - 0.5


def closure():
    generator = np.random.default_rng(3)
    return lambda: generator.random()


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ORDERS = {
    "global": lambda: loaded(shuffle=True),
    "of the loader": lambda: loaded(shuffle=True, generator=generator()),
    "of a sampler": lambda: loaded(
        sampler=RandomSampler(range(24), generator=generator())
    ),
    "of a weighted sampler": lambda: loaded(
        sampler=WeightedRandomSampler(torch.ones(24), 24, generator=generator())
    ),
    "of a batch sampler": lambda: DataLoader(
        Dimmed(),
        batch_sampler=BatchSampler(
            RandomSampler(range(24), generator=generator()), 4, False
        ),
    ),
    "distributed": lambda: loaded(sampler=DistributedSampler(range(24), 1, 0)),
    **{
        f"own, {kind}": functools.partial(lambda k: loaded(sampler=Own(k)), kind)
        for kind in ("torch", "numpy", "python", "counted")
    },
    "stateful": lambda: loaded(sampler=Stateful("counted")),
    "an argument": lambda: loaded(sampler=Reseeded(24), num_workers=1),
    "batches that change": lambda: DataLoader(Dimmed(), batch_sampler=Growing()),
    "counted in a list": lambda: loaded(sampler=Counting()),
    "own batches": lambda: DataLoader(Dimmed(), batch_sampler=OwnBatches()),
    "live": lambda: loaded(sampler=Live()),
    "unseeded": lambda: loaded(shuffle=True, generator=torch.Generator()),
}
DRAWS = {
    "global torch": lambda: torch.rand(()),
    "global numpy": lambda: np.random.random(),
    "global python": random.random,
    "numpy": lambda: np.random.default_rng(3).random,
    "old numpy": lambda: np.random.RandomState(3).random_sample,
    "python": lambda: random.Random(3).random,
    "closure": closure,
    "partial": lambda: functools.partial(
        lambda g: torch.rand((), generator=g), generator()
    ),
    "albumentations": Albumentations,
    "albumentations, seeded": lambda: Albumentations(seed=3),
    "monai": lambda: Monai(None),
    "monai, seeded": lambda: Monai(3),
}
MADE = {n: (lambda f=f: f) if n.startswith("global") else f for n, f in DRAWS.items()}


@pytest.mark.parametrize("order", ORDERS)
def test_orders(order: str, tmp_path: Path) -> None:
    """Found: images were trained on twice, others never."""
    assert_resumes(tmp_path, ORDERS[order])


@pytest.mark.parametrize("draw", MADE)
def test_draws_of_data_sets(draw: str, tmp_path: Path) -> None:
    def make():
        return loaded(Dimmed(MADE[draw]()), shuffle=True)

    assert_resumes(tmp_path, make, steps=(8,))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["global", "of the loader", "own, numpy"])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers(order: str, persistent: bool, tmp_path: Path) -> None:
    def make():
        loader = ORDERS[order]()
        return DataLoader(
            loader.dataset,
            batch_size=4,
            sampler=None if order != "own, numpy" else loader.sampler,
            shuffle=order != "own, numpy",
            generator=loader.generator,
            num_workers=2,
            persistent_workers=persistent,
            multiprocessing_context="fork",
        )

    if persistent:
        with pytest.warns(UserWarning, match="resumes with persistent workers"):
            assert_resumes(tmp_path, make, steps=(8,))
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="DiRA")
            assert_resumes(tmp_path, make, steps=(8, 12))


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["global torch", "numpy", "monai, seeded"])
def test_draws_of_workers(draw: str, tmp_path: Path) -> None:
    """Workers that start with each epoch copy the generators of the data set."""

    def make():
        data = Dimmed(MADE[draw]())
        return loaded(data, shuffle=True, num_workers=2, multiprocessing_context="fork")

    assert_resumes(tmp_path, make, steps=(8,))


def test_of_a_hook(tmp_path: Path) -> None:
    """The loader is made by the module, and draws its split from the global one."""

    class Mine(DiRASimSiam):
        def train_dataloader(self):
            chosen = torch.randperm(24)[:20].tolist()
            data = torch.utils.data.Subset(Dimmed(), chosen)
            return loaded(data, shuffle=True, generator=generator())

    whole = None
    for path in (None, tmp_path / "step=4.ckpt"):
        torch.manual_seed(0)
        model = Mine()
        saving = ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1
        )
        run = trainer(
            tmp_path, callbacks=[saving], enable_checkpointing=True, max_epochs=2
        )
        run.fit(model, ckpt_path=path)
        if whole is None:
            whole = state(model)
    assert_same(state(model), whole)


class TestWhatIsFound:
    def test_anywhere(self) -> None:
        class Holder:
            __slots__ = ("__dict__", "other")

        holder = Holder()
        holder.nested = {"a": [np.random.default_rng(0)], "b": (closure(),)}
        holder.transform = Monai(None)
        holder.method = Albumentations(seed=1).__call__
        holder.same = holder.nested["a"][0]
        holder.itself = holder
        holder.samples = [f"{n}.png" for n in range(100_000)]
        own = OwnRandomness([loaded([holder], generator=generator())])
        kinds = sorted(type(g).__name__ for g in own._generators.values())
        assert kinds.count("RandomState") >= 1
        assert kinds.count("Generator") >= 4
        assert "Random" in kinds
        before = [g.random() for g in (holder.same,)]
        saved = OwnRandomness([loaded([holder])]).state()
        del before
        first = holder.same.random()
        OwnRandomness([loaded([holder])]).load_state(saved)
        assert holder.same.random() == first

    def test_nothing_in_usual_loaders(self) -> None:
        state = OwnRandomness([loaded(shuffle=True, num_workers=0)]).state()
        assert state["generators"] == {}

    @pytest.mark.parametrize(
        "bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]
    )
    def test_every_kind_of_numpys(self, bits, tmp_path) -> None:
        holder = {"generator": np.random.Generator(bits(3))}
        own = OwnRandomness([holder])
        torch.save(own.state(), tmp_path / "state.pt")
        expected = holder["generator"].random(5)
        own.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert (holder["generator"].random(5) == expected).all()

    def test_in_other_containers(self) -> None:
        class Slotted:
            __slots__ = ("generator",)

        slotted = Slotted()
        slotted.generator = random.Random(0)

        def default(g=np.random.default_rng(0)):  # noqa: B008
            return g

        holders = [
            deque([random.Random(1)]),
            {random.Random(2)},
            slotted,
            default,
            np.random.PCG64(3),
            [object()] * 3 + [random.Random(4)],
            random.SystemRandom(),
        ]
        for number, holder in enumerate(holders):
            own = OwnRandomness([{"holder": holder}])
            assert len(own._generators) == (number < 6), number
            own.load_state(own.state())


def test_checkpoints_are_plain(tmp_path) -> None:
    data = loaded(Dimmed(Albumentations(seed=3)), sampler=Own("numpy"))
    fit(tmp_path, lambda: data)
    torch.load(tmp_path / "step=4.ckpt", weights_only=True)


class TestWhatSamplersAreMadeWith:
    """Is that of the resumed run's own code; what they count goes on."""

    def reloaded(self, before: Sampler, after: Sampler, *, moved: int = 2) -> Sampler:
        own = OwnRandomness([DataLoader(Images(), batch_sampler=before)])
        for _ in range(moved):
            list(before)
        state = own.state()
        OwnRandomness([DataLoader(Images(), batch_sampler=after)]).load_state(state)
        return after

    def test_a_batch_size(self) -> None:
        """Found: a run that went on with larger batches had the old ones, silently."""
        four, eight = (BatchSampler(range(24), size, False) for size in (4, 8))
        assert self.reloaded(four, eight).batch_size == 8

    def test_own_samplers_count_whatever_they_hold(self) -> None:
        """Also what an argument starts, or what has not moved yet."""
        after = Reseeded(24, epoch=5)
        state = OwnRandomness([loaded(sampler=Reseeded(24))]).state()
        OwnRandomness([loaded(sampler=after)]).load_state(state)
        assert after.epoch == 0

    def test_the_same_loader_again(self, tmp_path: Path) -> None:
        data = loaded(sampler=Reseeded(24))
        whole = fit(tmp_path, lambda: data)
        again = fit(tmp_path / "again", lambda: data, path=tmp_path / "step=4.ckpt")
        assert_same(again, whole)

    def test_of_a_distributed_sampler(self) -> None:
        def sampler(count: int) -> DistributedSampler:
            return DistributedSampler(range(count), num_replicas=2, rank=1)

        before = sampler(20)
        before.set_epoch(5)
        own = OwnRandomness([DataLoader(Images(), sampler=before)])
        after = sampler(30)
        OwnRandomness([DataLoader(Images(), sampler=after)]).load_state(own.state())
        assert (after.epoch, after.num_samples, after.total_size) == (5, 15, 30)

    def test_states_of_others_are_ignored(self) -> None:
        """Found: a KeyError of the user's own `load_state_dict`."""
        state = OwnRandomness([DataLoader(Images(), shuffle=True)]).state()
        sampler = Stateful("counted")
        OwnRandomness([DataLoader(Images(), sampler=sampler)]).load_state(state)
        assert sampler.epoch == 0
