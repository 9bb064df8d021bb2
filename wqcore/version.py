"""The version of wqcore."""

VERSION = "0.1.0"
