"""Triton kernels, one operator a file. Only the dispatcher imports them, and only when a GPU tensor asks for one."""
