"""What runs on a cluster or a bench, each a thin entry point over cvm_batch."""
