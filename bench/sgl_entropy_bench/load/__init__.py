"""The load tester: arrivals, workload, client, records, statistics, verdict, tables."""
