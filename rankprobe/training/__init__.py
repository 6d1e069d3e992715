"""The one training loop, evaluation and latency."""
