"""Engines: they train and predict. `engine.torch` on weights and devices, `engine.sim` on planted truth.

Nothing heavy is imported here, so that the simulator loads without torch.
"""

import logging

# It misses kernels for a forward pass of its own, which is not used here: it stores weights, and PEFT looks for it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
