"""The base model with weighted adapter sets in every linear layer."""
