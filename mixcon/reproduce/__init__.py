"""A paper's claims, measured: studies as data, the command that runs them, the page that shows them."""

from mixcon.reproduce.study import Arm, Study, Table

__all__ = ["Arm", "Study", "Table"]
