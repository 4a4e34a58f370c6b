"""Record privileged login sessions, and account for those that are not recorded."""

__version__ = "0.1.0"
