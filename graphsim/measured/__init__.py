"""From a trace to a layout, for real: backends, and the replay that compares them with a model."""
