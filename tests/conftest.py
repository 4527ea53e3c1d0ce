"""Small tensors gain nothing from threads, and processes take them from each other."""

import os
import sys

import torch

torch.set_num_threads(1)
# Processes of one machine meet there, whatever its own name stands for.
if sys.platform == "linux":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
