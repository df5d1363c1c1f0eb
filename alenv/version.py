"""The version, apart from the package so that building needs none of its dependencies."""

VERSION = "0.1.0"
