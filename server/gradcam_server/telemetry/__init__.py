"""Logs, metrics and traces.

logs           the log: text or JSON, without content of images
native_stderr  lines that native code writes to stderr, as records of the JSON log
metric_table   the table of all metrics
metrics        a method for each event that metrics count
process_sum    the metrics of other processes added to those of this process
tracing        spans of requests, without OpenTelemetry
otel           spans by OpenTelemetry
setup          turns tracing on
memory         the memory of the process and its limits
"""
