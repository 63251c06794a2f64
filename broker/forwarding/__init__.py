"""Receivers of what the log records: syslog, webhooks, a file of JSON lines."""
