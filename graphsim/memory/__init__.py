"""From a trace to a layout: models of allocators, and static packing."""
