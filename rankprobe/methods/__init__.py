"""What is trained: everything, the head, or LoRA factors."""
