"""Engines: they train and predict. `engine.torch` on weights and devices, `engine.sim` on planted truth.

Nothing is imported here, so that the simulator loads without torch.
"""
