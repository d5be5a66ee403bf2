"""Runs on a Ray cluster, handed over and watched from outside through Ray's Jobs API."""
