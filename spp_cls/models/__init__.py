"""The networks, from their specs to logits."""
