"""Measurements that take longer than a test may and need more than a device has."""
