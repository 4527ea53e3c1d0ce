"""The steps and checks of a run, and what resuming it needs.

Every view carries its clean target. Each step restores the first view that the trained
encoder saw whole. The pass that saw it is recognised at the module that receives the
image, by identity or by value, and verified at every step. (On an accelerator the
result is read one step later: if a loop changes its order, one step restores the wrong
view, a warning says so, and every step waits for the comparison from then on.)

- Lightly's 26 plain examples of discriminative methods: run with DiRA's three lines
- views moved, copied, concatenated (in blocks or alternating), normalised or repeated
  over channels; in any order, another view each time, more passes than views,
  multi-crop: recognised
- views changed otherwise (augmented on the device, resized): pass the tensor that the
  backbone was called with, `dira(loss, batch, view=x)`
- several `DiRAViews` in a batch, as of two modalities: those that the backbone saw are
  restored together, if they have one size; otherwise an error
- what normalises or repeats views is learned while training and kept in the state:
  pictures and spreads of held-out images apply it. Once it is known, validation of such
  loops has to pass ``view=x``, as no pass proves it; an error says so
- the backbone called by another method (`encode`, `forward_features`, ...), compiled or
  by `functional_call`: works if one module receives the image
- images flipped, shuffled or resized inside the backbone: an error; pass `view=x`
- tokens dropped by masks (MSN): another view is restored; if there is none, an error
- activation checkpointing, also `set_grad_checkpointing()` after wrapping: works with
  `use_reentrant=False`; reentrant over several maps is an error
- accumulation, `zero_grad` of optimiser or model, skipped steps, backward passes that
  fail, unused or frozen parameters: as for the backbone. Divide what `dira` returns,
  ``loss = dira(loss, batch) / accumulation_steps``: divided before, the method's loss
  would weigh less than restoration
- an overflow under a `GradScaler`: a warning, and the scaler skips the step; three in a
  row are an error, as is any term that is not finite without a scaler
- clipping: `dira.clip_grad_norm_(1.0)` clips all that the method's loss depends on, and
  the decoder; `model.parameters()` leaves the decoder out
- layer-wise learning rates: the decoder joins the backbone's group with the largest
- a new optimiser, or one in two parts (SAM): call `dira.attach(optimizer)`; otherwise a
  warning follows after three steps. Optimisers that wrap another one (accelerate,
  schedulefree, Lookahead): an error that names the inner one, which works
- parameters that are replaced, as by ``load_state_dict(assign=True)``: an error at the
  next step, until `dira.attach(optimizer)` is called again
- DiRA whose scalar is not differentiated, or whose parts get no gradient, a frozen
  backbone: a warning after three steps; DiRA that is never called: after five
- what a later stage needs (sizes for the critic, a head of your own, the right view,
  the last layer of a balanced adversary): tried in the first step, also in stage "di"
- half precision after wrapping, `model.half()` and `dira.half()`: works; the critic
  stays in single precision
- `state_dict()` holds tensors only, of constant shapes: averages of weights (timm's,
  PyTorch's, or your own that copy integers), safetensors and accelerate work
- `DistributedDataParallel` with `device_ids` rebuilds the lists that its `forward` is
  called with: call `dira` outside of it
- a strict `torch.export` of a watched backbone, and before PyTorch 2.7
  ``torch.compile(fullgraph=True)``: not possible; the error says why
- `copy.deepcopy((model, dira, optimizer))`, pickle: the copies train by themselves
- states of optimisers: load that of a DiRA run after wrapping, that of a run without
  DiRA before wrapping
- `DiRAViews` changed by operations of lists: an error; copied, pickled, pinned, moved
  and loaded by workers: works
- Lightly's `MultiViewCollate`: an error; leave `collate_fn` out, PyTorch's default
  works
- parts of the loss that start, rise, fall and end: `Schedule` and `Ramp`
- hosts that restore by themselves: `Adversary`

``watch(dira)`` writes the terms every 50 steps.
"""

from lightly_dira.loss.schedule import Ramp, Schedule
from lightly_dira.training.watch import watch

__all__ = ["Ramp", "Schedule", "watch"]
