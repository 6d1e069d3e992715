"""rankprobe: what rank does your fine-tuning need, and is LoRA really as good here?"""

__version__ = "0.1.0"
