"""What the registry reaches outside itself: folders, the Hugging Face hub, the broker."""
