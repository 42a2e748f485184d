"""RMS norm, rotary positions, SwiGLU and the KV write of a layer, all fp32.

The compiled decoder stack runs the C++ of these (elementwise.h) inside its own loop.
"""
