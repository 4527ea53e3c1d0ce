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
- the backbone called by another method (`encode`, `forward_features`, ...), compiled or
  by `functional_call`: works if one module receives the image
- images flipped, shuffled or resized inside the backbone: an error; pass `view=x`
- tokens dropped by masks (MSN): another view is restored; if there is none, an error
- activation checkpointing, also `set_grad_checkpointing()` after wrapping: works with
  `use_reentrant=False`; reentrant over several maps is an error
- accumulation, `zero_grad` of optimiser or model, skipped steps, unused or frozen
  parameters: as for the backbone
- clipping: `dira.clip_grad_norm_(1.0)` clips model and decoder together;
  `model.parameters()` leaves the decoder out
- a new optimiser, or one in two parts (SAM): call `dira.attach(optimizer)`; otherwise a
  warning follows after three steps
- `copy.deepcopy((model, dira, optimizer))`, pickle: the copies train by themselves
- states of optimisers: load that of a DiRA run after wrapping, that of a run without
  DiRA before wrapping
- Lightly's `MultiViewCollate`: an error; leave `collate_fn` out, PyTorch's default
  works
- parts of the loss that start, rise, fall and end: `Schedule` and `Ramp`
- hosts that restore by themselves: ``DiRA(..., restores=False)``, then
  ``dira(loss, restored=images, target=clean)``
"""

from lightly_dira.training.schedule import Ramp, Schedule

__all__ = ["Ramp", "Schedule"]
