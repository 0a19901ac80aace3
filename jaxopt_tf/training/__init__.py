"""Training: compiled steps, the training loop, evaluation and resumption.

train_step = make_train_step(loss_fn, optimizer)
state = init_train_state(params, optimizer)
trained = train(train_step, state, batches, max_steps=1_000)
"""

from ._chunked_loss import chunked_cross_entropy as chunked_cross_entropy
from ._evaluation import Evaluation as Evaluation
from ._evaluation import Progress as Progress
from ._evaluation import Selection as Selection
from ._evaluation import after_evaluation as after_evaluation
from ._evaluation import check_selection as check_selection
from ._evaluation import make_evaluate as make_evaluate
from ._evaluation import metric_values as metric_values
from ._frozen import FrozenStep as FrozenStep
from ._frozen import bind_frozen as bind_frozen
from ._frozen import merge_params as merge_params
from ._frozen import split_params as split_params
from ._gradients import Batch as Batch
from ._gradients import LossFn as LossFn
from ._gradients import MicroBatches as MicroBatches
from ._loop import Monitor as Monitor
from ._loop import Trained as Trained
from ._loop import Window as Window
from ._loop import train as train
from ._losses import cross_entropy as cross_entropy
from ._resume import Resumable as Resumable
from ._resume import RunState as RunState
from ._resume import restore_run_state as restore_run_state
from ._resume import resumable as resumable
from ._resume import save_run_state as save_run_state
from ._signals import StopRequest as StopRequest
from ._signals import stop_on_signals as stop_on_signals
from ._state import Metrics as Metrics
from ._state import Norms as Norms
from ._state import TrainState as TrainState
from ._state import evaluation_params as evaluation_params
from ._state import init_train_state as init_train_state
from ._step import EvalStep as EvalStep
from ._step import TrainStep as TrainStep
from ._step import make_eval_step as make_eval_step
from ._step import make_train_step as make_train_step
