"""One run: settings -> plan -> leases -> executor -> replicas -> ledger -> results."""
