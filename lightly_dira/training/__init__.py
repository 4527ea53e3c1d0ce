"""Who steps what in a run, what it is checked for, and what resuming needs.

Every view carries its clean target, and in each step the first view that the trained
encoder saw whole is restored. Which of the backbone's passes saw it is recognised at
the module that receives the image, by identity or by value, and proven at every step.
(On an accelerator the proof is looked at one step later: a loop that changes its order
is wrong for one step, says so, and is compared at every step from then on.)

- Lightly's 26 plain examples of discriminative methods: run with the three lines
- views moved, copied, concatenated (in blocks or in turns), normalised, repeated over
  channels; in any order, another view each time, more passes than views, multi-crop:
  recognised
- changed otherwise (augmented on the device, resized): `dira(loss, batch, view=x)`: the
  tensor that the backbone was called with
- the backbone called by a method (`encode`, `forward_features`, ...), compiled, by
  `functional_call`: works, where one module receives the image
- images flipped, shuffled or resized inside the backbone: an error; say `view=x`
- tokens dropped by masks (MSN): another view is restored; without one, an error
- activation checkpointing, also `set_grad_checkpointing()` after wrapping: works with
  `use_reentrant=False`; reentrant over several maps is an error
- accumulation, `zero_grad` of optimiser or model, skipped steps, unused or frozen
  parameters: as for the backbone
- clipping: `dira.clip_grad_norm_(1.0)` clips model and decoder together;
  `model.parameters()` leaves the decoder out
- an optimiser made again, or in two parts (SAM): `dira.attach(optimizer)`; forgotten, a
  warning after three steps
- `copy.deepcopy((model, dira, optimizer))`, pickle: the copies train by themselves
- states of optimisers: wrap, then load what a DiRA run saved; load a bare run's before
  wrapping
- Lightly's `MultiViewCollate`: an error: leave `collate_fn` out, PyTorch's default does
  it
"""
