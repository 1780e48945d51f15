"""The trainer's tiny target and store, for the tests of this room that need them."""

from tests.train.conftest import _one_thread, tiny_folder, tiny_store, tiny_target

__all__ = ["_one_thread", "tiny_folder", "tiny_store", "tiny_target"]
