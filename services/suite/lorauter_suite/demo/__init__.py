"""The demo pool: a tiny base model with LoRA adapters that the project trains itself, and its recipe."""
