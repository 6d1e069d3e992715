"""Numbers on bare tensors; knows no model."""
