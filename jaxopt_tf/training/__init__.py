"""State and batch come in, state and metrics go out.

train_step = make_train_step(loss_fn, optimizer)
state = init_train_state(params, optimizer)
state = train(train_step, state, batches, num_steps=1_000, monitors=[console(1_000)])
"""

from ._loop import make_evaluate as make_evaluate
from ._loop import train as train
from ._monitors import Evaluation as Evaluation
from ._monitors import Monitor as Monitor
from ._monitors import Window as Window
from ._monitors import console as console
from ._monitors import curves as curves
from ._monitors import json_lines as json_lines
from ._state import Metrics as Metrics
from ._state import TrainState as TrainState
from ._state import init_train_state as init_train_state
from ._step import Batch as Batch
from ._step import LossFn as LossFn
from ._step import make_eval_step as make_eval_step
from ._step import make_train_step as make_train_step
