"""The supporting parts, one concern a module; none imports from the top level."""
