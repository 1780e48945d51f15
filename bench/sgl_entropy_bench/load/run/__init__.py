"""A load run: clients that send on time and write what happened."""
