"""Offload and recompute together: which values wait on the host, when they go and come back, and what runs again."""
