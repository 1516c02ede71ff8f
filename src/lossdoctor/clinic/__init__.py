"""Programs x faults: how often the rules find what is wrong, name its root, and stay silent on healthy runs."""
