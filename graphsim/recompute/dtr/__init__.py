"""Dynamic Tensor Rematerialization: what its simulator does, as one loop over arrays."""
