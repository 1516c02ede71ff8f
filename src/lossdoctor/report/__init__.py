"""What people read about a run: one digest, and one file per form it is given in."""
