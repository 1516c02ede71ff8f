"""The only code that touches the user's graph: what is due, what was handed in, per-loss gradients, updates."""
