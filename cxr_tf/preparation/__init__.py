"""Preparation and checks of data sets."""
