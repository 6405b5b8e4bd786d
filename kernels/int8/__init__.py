"""Linear layers with int8 weights that have one float32 scale for each 128x128 tile."""
