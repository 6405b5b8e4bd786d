"""The rCM schedule and its few-step samplers."""
