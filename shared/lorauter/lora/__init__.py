"""LoRA adapters as files and as numpy arrays: reading, checking, storing, composing. No torch."""
