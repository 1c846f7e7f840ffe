"""Measures of answers beside the judge: text, references, labels, tool calls, probes, segments."""
