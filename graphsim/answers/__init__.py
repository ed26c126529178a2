"""What people ask, as plain data with provenance: peak, plan, fit, diff, sweep."""
