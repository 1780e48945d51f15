"""A server's routes as a client sees them: requests, streams, records, chat templates."""
