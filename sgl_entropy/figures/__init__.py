"""The project measured by itself: what its own training, plans and CPU kernels cost."""
