"""DiRA for Lightning: a mixin for any LightningModule, and callbacks that watch it.

Modules of `pytorch_lightning` and of `lightning.pytorch` work.

Checkpoints also hold what Lightly's own leave out (MoCo's queue), the random states and
the place in the data. A run that is killed in the middle of an epoch and resumed by
`fit(ckpt_path=...)` gets the weights of an uninterrupted run, on a CPU to the bit. To
find its place, it loads the past batches of the epoch again. In a plain loop,
`dira.state_dict()` holds the state of DiRA; `DiRA(..., criterion=criterion)` adds the
queue. What resumes:

- the order of shuffled loaders, with generators and samplers of your own whose state is
  in generators, numbers or short lists of them, samplers with a `state_dict` that tells
  the order (one that tells a place in it, as torchdata's `StatefulDistributedSampler`,
  needs torchdata's loader), and `DistributedSampler` in several processes
- another batch size than the checkpoint's: a warning, and data in another order
- augmentations that draw from the global generators of PyTorch, NumPy and Python, with
  workers and without
- generators that data sets and transforms hold (albumentations, MONAI's `R`,
  `np.random.default_rng`), where attributes, containers (their first 1,000 items),
  partial functions, methods, defaults or closures lead to them; those in global
  variables are not found
- ``persistent_workers=True``: the order, but not what workers draw, as they keep their
  generators from epoch to epoch; resuming warns of it
- loaders with a `load_state_dict` of their own, such as torchdata's
  `StatefulDataLoader`: as they resume by themselves

The tests cover these flags of the Trainer:

- `accumulate_grad_batches`, `gradient_clip_val`, `gradient_clip_algorithm`: work
- `precision="bf16-mixed"` (and `"16-mixed"`, which Lightning turns into it on a CPU):
  works
- `StochasticWeightAveraging`, `WeightAveraging`: work, decoder and critic included
- `ModelCheckpoint(save_on_exception=True)`: works; a resumed run trains on the
  interrupted batch again
- `strategy="ddp_find_unused_parameters_true"`: works, and is needed by methods that
  need it without DiRA, too (DINOv2, iBOT, MSN)
- resuming with another epoch length or number of processes: works, with a warning that
  data come in another order
- a backbone made in `setup` or `configure_model`: works
- a `training_step` or `configure_optimizers` that overrides the mixin's, or as
  `ckpt_path` a checkpoint of the method without DiRA: an error that says what to do
- `precision="64-true"`, `"bf16-true"`: an error, since Lightning rebuilds the batch's
  lists and loses the target
- `strategy="ddp"`, without `find_unused_parameters`: works (CPU, gloo), in every stage
  and when stages change, also where it rebuilds batches, as on GPUs (emulated)
- in stage "di" a run equals that of the method alone to the bit, with validation, too.
  Later, validation leaves the random state as it was, so that a resumed run may skip
  it; a checkpoint of stage "di" that was written between a batch and its validation
  resumes with other draws
- `max_steps`, `max_time`, `limit_train_batches`, `overfit_batches`, `fast_dev_run`,
  `val_check_interval`, `reload_dataloaders_every_n_epochs`, `detect_anomaly`,
  `deterministic`, `benchmark`, `profiler`, `inference_mode`: work
- `fit(ckpt_path=...)`: works, also in the middle of an epoch
- `strategy="fsdp"`, `"deepspeed"`: an error that names the ways that work
- manual optimisation: an error that says to call `self.dira(loss, batch)`

`RestorationLogger()` sends pictures (clean, distorted, restored, difference) to the
Trainer's logger, or writes PNG files; `CollapseWatch()` logs the spread of
representations, the critic's accuracies and its share of the gradient, and warns of a
collapse. Stages are given in steps, or in epochs: `adversarial_start_epoch = 100`, or
``schedule_in_epochs = Schedule.stepwise(400, ramp=0.1)``. `self.dira(loss, batch)` in a
`validation_step` computes the three terms on held-out views, to select the best
checkpoint.

In a plain loop, wrap both: `DistributedDataParallel(model)` and
`DistributedDataParallel(dira)`; wrapping only one is an error at the first step. Two
processes then compute the gradients of one process with the whole batch, to 1e-9 in
float64. To shard the model (`fully_shard` or `FullyShardedDataParallel`), make DiRA
before sharding, and attach the optimiser after it:

    dira = DiRA(model.backbone)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    dira.attach(optimizer)
    dira = DistributedDataParallel(dira)  # small, so it is not sharded

Plain loops work with bf16 and fp16 autocast (with a `GradScaler`; a skipped step also
skips the critic's), with channels-last, and with `torch.compile` of the model, of
`dira` or of both.
"""

from lightly_dira.lightning.collapse_watch import CollapseWatch
from lightly_dira.lightning.mixin import DiRAMixin
from lightly_dira.lightning.restoration_logger import RestorationLogger

__all__ = ["CollapseWatch", "DiRAMixin", "RestorationLogger"]
