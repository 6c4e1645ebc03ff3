"""Integrations: each needs the library it is named after."""
