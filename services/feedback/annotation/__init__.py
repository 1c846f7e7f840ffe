"""Annotation queue: items that several raters label, adjudication, and label consistency."""
