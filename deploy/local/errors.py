"""What can go wrong with a local stack. Messages say what was wrong and what to do."""

from __future__ import annotations


class StackError(Exception):
    """Base of everything the local stack raises."""


class BadDeclaration(StackError):
    """A process file that cannot be read, or names what does not exist."""


class ProcessNotReady(StackError):
    """A process that did not become ready in its time; carries the end of its log."""


class NotRunning(StackError):
    """Something was asked of a stack that is not up."""


class StackPortTaken(StackError):
    """A fixed port that another program holds."""
