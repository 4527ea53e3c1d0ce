"""DiRA for Lightning: a mixin for any LightningModule, and callbacks that watch it.

Checkpoints also hold what Lightly leaves out of its own (MoCo's queue), the random
states and the place in the data. `fit(ckpt_path=...)` after a kill in the middle of an
epoch goes on to the same weights, to the bit on a CPU, as a run never interrupted,
shuffled and augmented data and loader workers included; to find its place it loads the
epoch's batches so far once more. In a plain loop `dira.state_dict()` holds what is
DiRA's; `DiRA(..., criterion=criterion)` adds the queue.

Flags of the Trainer that the tests have tried:

- `accumulate_grad_batches`, `gradient_clip_val`, `gradient_clip_algorithm`: work
- `precision="bf16-mixed"` (and `"16-mixed"`, which Lightning turns into it on a CPU):
  works
- `StochasticWeightAveraging`, `WeightAveraging`: work, decoder and critic included
- `ModelCheckpoint(save_on_exception=True)`: works: the interrupted batch is trained on
  resuming
- `strategy="ddp_find_unused_parameters_true"`: works, and is needed where it is without
  DiRA (DINOv2, iBOT, MSN)
- resuming with epochs of another length, or other numbers of processes: works, with a
  warning: data come in another order
- a backbone made in `setup` or `configure_model`: works
- a `training_step` in front of the mixin, a checkpoint of the bare method as
  `ckpt_path`: an error with the cure
- `precision="64-true"`, `"bf16-true"`: an error: Lightning makes the batch's lists
  again, and the target is lost
- `strategy="ddp"`, without `find_unused_parameters`: works (CPU, gloo), in every stage
  and across their changes
- `max_steps`, `max_time`, `limit_train_batches`, `overfit_batches`, `fast_dev_run`,
  `val_check_interval`, `reload_dataloaders_every_n_epochs`, `detect_anomaly`,
  `deterministic`, `benchmark`, `profiler`, `inference_mode`: work
- `fit(ckpt_path=...)`: works, in the middle of an epoch, too
- `strategy="fsdp"`, `"deepspeed"`: an error that names the ways that work
- manual optimisation: an error that says to call `self.dira(loss, batch)`

`RestorationLogger()` sends pictures (clean, distorted, restored, difference) to the
Trainer's logger, or writes PNG files; `CollapseWatch()` logs the spread of
representations and the critic's accuracies, and warns of a collapse. `self.dira(loss,
batch)` in a `validation_step` gives the three terms of held-out views, for the best
checkpoint.

In a plain loop, wrap both: `DistributedDataParallel(model)` and
`DistributedDataParallel(dira)`; a wrapper left alone is an error at the first step.
Two processes then have the gradients of one with the whole batch, to 1e-9 in float64.
To shard the model (`fully_shard` or `FullyShardedDataParallel`), make DiRA before, and
hand it the optimiser after:

::

    dira = DiRA(model.backbone)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    dira.attach(optimizer)
    dira = DistributedDataParallel(dira)  # small, it stays whole

bf16 and fp16 autocast (with a `GradScaler`; a skipped step skips the critic's, too),
channels-last and `torch.compile` of the model, of `dira` or of both work in plain
loops.
"""

from lightly_dira.lightning.callbacks import CollapseWatch, RestorationLogger
from lightly_dira.lightning.mixin import DiRAMixin

__all__ = ["CollapseWatch", "DiRAMixin", "RestorationLogger"]
