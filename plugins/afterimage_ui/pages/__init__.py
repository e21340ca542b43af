"""A module for each page, with its routes in `router`."""
