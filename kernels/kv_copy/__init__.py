"""Copies inside the KV cache, all layers at once: blocks for forks, slots for accepted tree paths.

src and dst [n] are integers: blocks, or slots (block * 16 + offset). dst holds no value twice.
Sources are read before destinations are written, so the two may overlap.
"""
