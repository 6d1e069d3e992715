"""The LoRA paper's published numbers, and which study answers which claim."""
