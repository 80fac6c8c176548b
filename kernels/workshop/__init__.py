"""The workshop in which every kernel is checked, inspected and timed, by the same rules."""
