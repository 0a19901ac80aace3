"""Checkpoints: trees of arrays, written atomically and verified by checksums.

with lock_folder("runs/mine") as lock, open_checkpoints(lock) as checkpoints:
    checkpoints.save(100, {"params": params}, {"learning_rate": 3e-4})
restored = restore_latest("runs/mine", {"params": params})
"""

from ._folder_lock import FolderLock as FolderLock
from ._folder_lock import lock_folder as lock_folder
from ._restore import Restored as Restored
from ._restore import latest_valid as latest_valid
from ._restore import read_metadata as read_metadata
from ._restore import restore as restore
from ._restore import restore_latest as restore_latest
from ._save import Checkpoints as Checkpoints
from ._save import find_checkpoints as find_checkpoints
from ._save import open_checkpoints as open_checkpoints
from ._save import step_of as step_of
