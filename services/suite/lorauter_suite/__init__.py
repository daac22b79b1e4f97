"""The suite: what runs lorauter on one machine, and the demo pool with its trainer."""
