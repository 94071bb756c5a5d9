"""Settings of the core's tests: one thread, and property tests that are the same on every run."""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("core", deadline=None, derandomize=True, database=None, max_examples=100)
hypothesis.settings.register_profile("few", hypothesis.settings.get_profile("core"), max_examples=10)
hypothesis.settings.load_profile("core")
