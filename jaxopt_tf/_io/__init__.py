"""Files that are written whole, values read from files, and one process for all."""

from ._atomic_file import check_folder as check_folder
from ._atomic_file import whole_file as whole_file
from ._processes import (
    check_equal_across_processes as check_equal_across_processes,
)
from ._processes import done_by_first as done_by_first
from ._processes import is_first as is_first
from ._processes import told_by_first as told_by_first
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
