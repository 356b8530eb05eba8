"""The Triton kernel runs on a GPU, or in the interpreter where its variable was set before Triton was imported."""

import os

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = ["test_rotary_triton.py"]  # test_rotary_interpreted.py runs it in a process of its own
