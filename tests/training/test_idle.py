"""DiRA is there and does not train: a warning, after a few steps, and no false one."""

from __future__ import annotations

import pytest
import torch
from followed import Loop, warned_of
from loops import make_views
from methods import SimSiam, tiny_backbone
from torch import nn
from torch.nn import functional as F

from lightly_dira import Adversary, DiRA, DiRALoss


class TestIdle:
    @pytest.mark.parametrize("options", [{}, dict(adversarial_start=2)])
    def test_the_scalar_is_not_differentiated(self, options) -> None:
        """Found: `components` looked alive, and nothing was trained."""
        run = Loop(**options)

        def step(_: int) -> None:
            views = make_views(2)
            loss = run.loss(views)
            run.dira(loss, views)
            run.step(loss)

        (message,) = warned_of(step)
        assert "is not differentiated" in message
        assert "loss = dira(loss, batch)" in message

    @pytest.mark.parametrize("start", [0, 100])
    def test_the_third_line_is_forgotten(self, start: int) -> None:
        run = Loop(restorative_start=start)
        (message,) = warned_of(lambda _: run.step(run.loss(make_views(2))))
        assert "has not been called" in message

    def test_after_a_few_steps(self) -> None:
        run = Loop()
        assert not warned_of(lambda _: run.step(run.loss(make_views(2))), 4)
        assert warned_of(lambda _: run.step(run.loss(make_views(2))), 1)

    def test_forgotten_by_a_host(self) -> None:
        host = nn.Conv2d(3, 3, 3, padding=1)
        optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
        dira = Adversary(host, optimizer, target_channels=3)

        def step(_: int) -> None:
            images = torch.rand(2, 3, 16, 16)
            F.mse_loss(host(images), images).backward()
            optimizer.step()

        assert len(warned_of(step)) == 1
        assert dira.components is None

    def test_gradients_of_the_backbone_alone(self) -> None:
        run = Loop()
        trained = list(run.model.parameters())

        def step(_: int) -> None:
            total = run.total(make_views(2))
            for p, gradient in zip(
                trained,
                torch.autograd.grad(total, trained, allow_unused=True),
                strict=True,
            ):
                p.grad = gradient
            run.optimizer.step()
            run.optimizer.zero_grad()

        (message,) = warned_of(step)
        assert "no gradient reaches the head" in message

    def test_a_frozen_backbone(self) -> None:
        """Found: accepted without a word."""
        run = Loop()
        run.model.backbone.requires_grad_(False)
        (message,) = warned_of(lambda _: run.step(run.total(make_views(2))))
        assert "every parameter of the backbone is frozen" in message

    def test_a_frozen_decoder(self) -> None:
        """Found: a loop over names froze head and critic, too, in silence."""
        run = Loop()
        run.dira.requires_grad_(False)
        run.model.requires_grad_(True)
        (message,) = warned_of(lambda _: run.step(run.total(make_views(2))))
        assert "of the head, or of the discriminator, is frozen" in message

    def test_no_optimiser(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone)
        views = make_views(2)
        with torch.no_grad():
            assert not warned_of(lambda _: dira(torch.zeros(()), views))
        found = warned_of(lambda _: dira(model.loss(*views), views))
        assert len(found) == 1
        assert "no optimiser is attached" in found[0]


class TestNoFalseAlarm:
    """Loops of all kinds, with warnings as errors."""

    def test_accumulation(self) -> None:
        run = Loop()

        def step(number: int) -> None:
            (run.total(make_views(2)) / 4).backward()
            if number % 4 == 3:
                run.optimizer.step()
                run.optimizer.zero_grad()

        assert not warned_of(step, 24)

    def test_steps_that_are_skipped(self) -> None:
        run = Loop()

        def step(number: int) -> None:
            total = run.total(make_views(2))
            if number % 3:
                total.backward()
                if number % 2:
                    run.optimizer.step()
            run.optimizer.zero_grad()

        assert not warned_of(step, 24)

    def test_skipped_by_a_scaler(self) -> None:
        run = Loop()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

        def step(number: int) -> None:
            total = scaler.scale(run.total(make_views(2)))
            total.backward()
            if number % 3 == 1:
                next(run.model.parameters()).grad.fill_(torch.inf)
            scaler.step(run.optimizer)
            scaler.update()
            run.optimizer.zero_grad()

        assert not warned_of(step, 12)

    def test_alternating_with_another_loss(self) -> None:
        """As a supervised step between, by the same optimiser."""
        run = Loop()

        def step(number: int) -> None:
            views = make_views(2)
            run.step(run.loss(views) if number % 4 else run.total(views))

        assert not warned_of(step, 24)

    def test_alternating_as_a_gan(self) -> None:
        """Five steps of a critic of the user's for each of the encoder."""
        run, critic = Loop(), nn.Linear(16, 1)
        other = torch.optim.Adam(critic.parameters())

        def step(number: int) -> None:
            views = make_views(2)
            judged = critic(run.model.backbone(views[0])).mean()
            if number % 6:
                judged.backward()
                other.step()
            else:
                run.step(run.dira(judged + run.loss(views), views))
            critic.zero_grad()
            run.optimizer.zero_grad()

        assert not warned_of(step, 36)

    def test_two_wrappers_of_one_loss(self) -> None:
        first, second = SimSiam(tiny_backbone(), 16), SimSiam(tiny_backbone(), 16)
        parameters = [*first.parameters(), *second.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        pair = [DiRA(model.backbone, optimizer) for model in (first, second)]

        def step(_: int) -> None:
            batches = make_views(2), make_views(2)
            loss = first.loss(*batches[0]) + second.loss(*batches[1])
            for dira, views in zip(pair, batches, strict=True):
                loss = dira(loss, views)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        assert not warned_of(step)
        assert [dira.steps for dira in pair] == [12, 12]

    def test_two_wrappers_of_one_encoder(self) -> None:
        """Of two modalities, one after the other."""
        run = Loop()
        other = DiRA(run.model.backbone, run.optimizer)

        def step(number: int) -> None:
            views = make_views(2)
            dira = (run.dira, other)[number % 2]
            run.step(dira(run.loss(views), views))

        assert not warned_of(step)

    def test_two_wrappers_in_phases(self) -> None:
        run = Loop()
        other = DiRA(run.model.backbone, run.optimizer)

        def step(number: int) -> None:
            views = make_views(2)
            dira = (run.dira, other)[number // 15]
            run.step(dira(run.loss(views), views))

        assert not warned_of(step, 30)

    def test_layers_taken_away(self) -> None:
        run = Loop()
        run.step(run.total(make_views(2)))
        run.model.projection_head = nn.Identity()
        run.model.prediction_head = nn.Identity()
        run.model.backbone.register_parameter("unused", None)
        run.step(run.total(make_views(2)))

    @pytest.mark.parametrize("second", [False, True])
    def test_weights_that_change_in_an_accumulation(self, second: bool) -> None:
        run = Loop()
        other = torch.optim.SGD(run.model.backbone.parameters(), lr=0.01)

        def step(number: int) -> None:
            (run.total(make_views(2)) / 6).backward()
            if second:
                other.step()
            else:
                with torch.no_grad():
                    for p in run.model.backbone.parameters():
                        p.clamp_(-2, 2)
            if number % 6 == 5:
                run.optimizer.step()
                run.optimizer.zero_grad()

        assert not warned_of(step, 24)

    def test_frozen_for_a_step(self) -> None:
        run = Loop()

        def step(number: int) -> None:
            run.model.backbone.requires_grad_(number % 3 > 0)
            run.step(run.total(make_views(2)))

        assert not warned_of(step)

    def test_validation_between(self) -> None:
        run = Loop(restorative_start=2, adversarial_start=4)

        def step(_: int) -> None:
            run.step(run.total(make_views(2)))
            views = make_views(2)
            run.model.eval()
            with torch.no_grad():
                run.dira(run.loss(views), views)
            run.model.train()

        assert not warned_of(step)

    def test_stages_and_ramps(self) -> None:
        from lightly_dira.training import Ramp, Schedule

        schedule = Schedule(restorative=Ramp(2, 2, 9), adversarial=Ramp(4, 2, 7))
        run = Loop(schedule=schedule)
        assert not warned_of(lambda _: run.step(run.total(make_views(2))))

    def test_gradients_cleared_early_or_late(self) -> None:
        run = Loop()

        def step(number: int) -> None:
            total = run.total(make_views(2))
            if number % 2:
                run.model.zero_grad()
            total.backward()
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=number % 3 > 0)

        assert not warned_of(step)

    def test_a_closure(self) -> None:
        run = Loop()

        def step(_: int) -> None:
            views = make_views(2)

            def closure():
                run.optimizer.zero_grad()
                total = run.total(views)
                total.backward()
                return total

            run.optimizer.step(closure)

        assert not warned_of(step)

    @pytest.mark.parametrize("start", [0, 4])
    def test_a_host(self, start: int) -> None:
        host = nn.Conv2d(3, 3, 3, padding=1)
        optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
        options = dict(target_channels=3, adversarial_start=start)
        dira = Adversary(host, optimizer, **options)

        def step(_: int) -> None:
            clean = torch.rand(2, 3, 16, 16)
            restored = host(clean)
            loss = F.mse_loss(restored, clean)
            dira(loss, restored=restored, target=clean).backward()
            optimizer.step()
            optimizer.zero_grad()

        assert not warned_of(step)

    def test_fine_tuning_after_it(self) -> None:
        """The same optimiser goes on without DiRA."""
        run = Loop()
        assert not warned_of(lambda _: run.step(run.total(make_views(2))), 3)
        assert not warned_of(lambda _: run.step(run.loss(make_views(2))))


def test_a_host_whose_images_are_cut_off() -> None:
    """Found: the adversary's gradient never reached it, in silence."""
    host = nn.Conv2d(3, 3, 3, padding=1)
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
    options = dict(target_channels=3)
    for start in (0, 5):
        dira = Adversary(host, optimizer, **options, adversarial_start=start)
        clean = torch.rand(2, 3, 16, 16)
        restored = host(clean)
        loss = F.mse_loss(restored, clean)
        with torch.no_grad():
            unseen = host(clean)
        if start:
            with pytest.warns(UserWarning, match=r"carry no gradient.*detach"):
                dira(loss, restored=restored.detach(), target=clean)
        else:
            for cut in (restored.detach(), unseen):
                with pytest.raises(ValueError, match=r"carry no gradient.*detach"):
                    dira(loss, restored=cut, target=clean)
        with pytest.raises(ValueError, match="swapped"):
            dira(loss, restored=clean, target=restored)
        with pytest.raises(TypeError, match=r"float\(\) / 255"):
            dira(loss, restored=restored, target=(255 * clean).byte())
        with torch.no_grad():
            dira(host(clean).mean(), restored=host(clean), target=clean)
        dira(loss, restored=restored, target=clean).backward()
    without = Adversary(host, optimizer, **options, loss=DiRALoss(adversarial_weight=0))
    without(F.mse_loss(host(clean), clean), restored=host(clean), target=clean)
