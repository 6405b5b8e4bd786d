"""Converting checkpoints: other weights, merged LoRAs and deltas, one tensor at a time into a new file."""
