"""Rows of a batch that move on from step to step, and what is trained on them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import tiny_backbone
from torch import nn

from lightly_dira import Adversary, DiRA, DiRALoss, DiRAViews
from lightly_dira.core.rows import Rows, Turns


@given(size=st.integers(1, 40), share=st.floats(0.01, 1), first=st.integers(0, 10**6))
def test_every_row_comes_equally_often(size: int, share: float, first: int) -> None:
    batch = torch.arange(size)
    counts = torch.zeros(size, dtype=torch.int64)
    for step in range(first, first + size):
        rows = Rows.of_step(size, share, step).of(batch)
        assert len(rows) == max(1, round(share * size))
        assert len(rows.unique()) == len(rows)
        counts[rows] += 1
    assert len(counts.unique()) == 1


def test_no_copy_where_none_is_needed() -> None:
    batch = torch.rand(8, 3)
    assert Rows.of_step(8, 1.0, 5).of(batch) is batch
    assert Rows.of_step(8, 0.25, 5).of(batch).data_ptr() == batch[2:].data_ptr()


def made(dims: int = 2, **options):
    torch.manual_seed(0)
    backbone = tiny_backbone(spatial_dims=dims).eval()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05)
    dira = DiRA(backbone, optimizer, **options)
    dira.head.eval()
    return backbone, optimizer, dira


def batch_of(number: int, dims: int = 2, seed: int = 0) -> DiRAViews:
    generator = torch.Generator().manual_seed(seed)
    size = (16,) * dims if dims == 3 else (32, 32)
    views = torch.rand(2, number, 3, *size, generator=generator)
    targets = torch.rand(2, number, 1, *size, generator=generator)
    return DiRAViews(views, dict(enumerate(targets)), target_view=None)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_loss_is_that_of_the_rows(dims: int, conditional: bool) -> None:
    """In value and gradient: decoded from these rows' maps, judged beside them."""
    backbone, optimizer, dira = made(
        dims, restored_share=0.5, conditional=conditional, loss=DiRALoss(balanced=True)
    )
    for step in range(3):
        views = batch_of(4, dims, seed=step)
        rows = slice(0, 2) if step % 2 == 0 else slice(2, 4)
        twin_backbone, twin = copy.deepcopy((backbone, dira))
        twin.restored_share = 1.0
        part = DiRAViews(
            [view[rows] for view in views],
            {i: target[rows] for i, target in enumerate(views.targets)},
            target_view=None,
        )
        dira(0 * backbone(views[0]).sum(), views).backward()
        twin(0 * twin_backbone(part[0]).sum(), part).backward()
        for name in ("restorative", "adversarial", "discriminator"):
            own, other = (getattr(d.components, name) for d in (dira, twin))
            torch.testing.assert_close(own, other)
        for module, other in ((backbone, twin_backbone), (dira, twin)):
            for p, q in zip(module.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4)
        optimizer.step()
        optimizer.zero_grad()


def test_all_rows_in_turns_are_the_whole() -> None:
    """The mean over the rows of all steps is the loss of the whole batch."""
    _, _, whole = made(adversarial_start=None)
    backbone, _, part = made(adversarial_start=None, restored_share=0.25)
    views, found = batch_of(8), []
    for step in range(4):
        part._count(step)
        part(backbone(views[0]).mean(), views)
        found.append(part.components.restorative)
    same, _, whole = made(adversarial_start=None)
    whole(same(views[0]).mean(), views)
    torch.testing.assert_close(torch.stack(found).mean(), whole.components.restorative)


def test_one_is_the_bit_that_was() -> None:
    """At 1 nothing is cut, and views, targets and maps are not copied."""
    results = []
    for options in ({}, {"restored_share": 1.0}):
        backbone, optimizer, dira = made(**options)
        for step in range(2):
            views = batch_of(4, seed=step)
            dira(backbone(views[0]).mean(), views).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.detach() for p in (*backbone.parameters(),)])
    assert all(map(torch.equal, *results))


def test_only_these_rows_are_decoded() -> None:
    backbone, _, dira = made(restored_share=0.25)
    sizes = []
    dira.head.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    views = batch_of(8)
    dira(backbone(views[0]).mean(), views)
    with torch.no_grad():
        dira(backbone(views[0]).mean(), views)
    assert sizes == [2, 8], "validation measures the whole batch"


def test_a_resumed_run_takes_the_same_rows() -> None:
    def train(steps, parts):
        backbone, optimizer, dira = parts
        for step in steps:
            views = batch_of(6, seed=step)
            dira(backbone(views[0]).mean(), views).backward()
            optimizer.step()
            optimizer.zero_grad()

    straight = made(restored_share=0.5)
    train(range(5), straight)
    first = made(restored_share=0.5)
    train(range(3), first)
    resumed = made(restored_share=0.5)
    for old, new in zip(first, resumed, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    train(range(3, 5), resumed)
    for p, q in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(p, q)


def test_batches_of_several_views_objects() -> None:
    """Of each, its rows; a last, smaller batch has fewer."""
    backbone, _, dira = made(restored_share=0.5)
    first, second = batch_of(4), batch_of(2, seed=1)
    sizes = []
    dira.head.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    loss = backbone(first[0]).mean() + backbone(second[0]).mean()
    dira(loss, {"a": first, "b": second}).backward()
    assert sizes == [2, 1]


def test_of_an_adversary() -> None:
    torch.manual_seed(0)
    host = nn.Conv2d(1, 1, 3, padding=1)
    adversary = Adversary(
        host, restored_share=0.25, conditional=True, discriminator=None
    )
    clean = torch.rand(8, 1, 32, 32)
    sizes = []
    adversary.discriminator.register_forward_hook(
        lambda _, args, out: sizes.append(len(args[0]))
    )
    restored = host(clean)
    loss = (restored - clean).square().mean()
    adversary(loss, restored, clean, view=clean).backward()
    assert set(sizes) <= {2, 4}, "two rows, restored and clean"
    expected = (restored - clean)[:2].square().mean()
    torch.testing.assert_close(adversary.components.restorative, expected)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_bad_shares(share: float) -> None:
    with pytest.raises(ValueError, match=r"restored_share must be in \(0, 1\]"):
        DiRA(tiny_backbone(), restored_share=share)


@pytest.mark.parametrize("between", [0, 1, 3])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_other_steps_between_those_of_dira(share: float, between: int) -> None:
    """Found: with one other step between two calls, half of the rows never came."""
    backbone, optimizer, dira = made(restored_share=share, adversarial_start=None)
    counts = torch.zeros(8)

    views = batch_of(8)
    expected = backbone[0](views[0]).detach().flatten(1)

    def count(module, given) -> None:
        rows = given[0][0].detach().flatten(1)
        for row in rows:
            counts[(expected - row).abs().sum(dim=1).argmin()] += 1

    optimizer.param_groups[0]["lr"] = 0.0
    dira.head.register_forward_pre_hook(count)
    for _ in range(8):
        dira(backbone(views[0]).mean(), views).backward()
        optimizer.step()
        for _ in range(between):
            optimizer.step()
    assert counts.tolist() == 8 * [8 * share]


def test_turns_are_resumed() -> None:
    turns = Turns()
    for step in (0, 0, 2, 5):
        rows = turns.rows(8, 0.25, step)
    again = Turns(turns.taken).rows(8, 0.25, 9)
    assert rows.start == 4
    assert again == turns.rows(8, 0.25, 9)
