"""Atomic writes, values read from files, and communication between processes."""

from ._atomic_file import atomic_write as atomic_write
from ._atomic_file import check_parent_folder as check_parent_folder
from ._processes import broadcast_from_process_0 as broadcast_from_process_0
from ._processes import (
    check_equal_across_processes as check_equal_across_processes,
)
from ._processes import is_primary_process as is_primary_process
from ._processes import run_on_process_0 as run_on_process_0
from ._values import JSON_OR_TEXT as JSON_OR_TEXT
from ._values import NUMBER as NUMBER
from ._values import SWITCH as SWITCH
from ._values import Kind as Kind
from ._values import is_null as is_null
from ._values import is_set as is_set
from ._values import kinds_of as kinds_of
from ._values import parse_json as parse_json
from ._values import read_json_object as read_json_object
from ._values import read_value as read_value
