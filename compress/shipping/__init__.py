"""Folders that are shipped: an artifact in the layout that a stock loader or a server expects, with its record."""
