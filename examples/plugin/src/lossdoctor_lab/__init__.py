"""A rule and a sink for lossdoctor, as an example."""
