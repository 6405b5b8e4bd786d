"""Checkpoint files: reading them, naming their tensors as ComfyUI does, telling what they hold."""
