"""Paired short runs of one script: what each loss, and the condition, is really good for."""
