"""Training runs: a recipe, a model and its data, trained in a run folder.

outcome = pretrain(
    RunConfig(
        recipe=Recipe(max_steps=1_000, learning_rate=3e-3, warmup_steps=0.05),
        model=gpt2_preset("micro"),
        job=Job(text=("books",), eval_steps=250, output_dir="runs/books"),
    )
)
"""

from ._base_weights import run_model as run_model
from ._compilation_cache import compilation_cache as compilation_cache
from ._config import RunConfig as RunConfig
from ._config import num_sequences as num_sequences
from ._conflicts import uses_eval_loss as uses_eval_loss
from ._epochs import check_before_reading as check_before_reading
from ._epochs import resolve_epochs as resolve_epochs
from ._example_evaluation import EvalPrediction as EvalPrediction
from ._example_job import ExampleJob as ExampleJob
from ._generate import Sampler as Sampler
from ._generate import generate as generate
from ._generate import make_sampler as make_sampler
from ._intervals import merge_settings as merge_settings
from ._job import Job as Job
from ._job_arguments import settings_from_transformers as settings_from_transformers
from ._labelled import train_labelled as train_labelled
from ._labelled_job import LabelledJob as LabelledJob
from ._labelled_job import TaskSettings as TaskSettings
from ._labelled_job import labelled_settings as labelled_settings
from ._metrics import task_metrics as task_metrics
from ._metrics import text_metrics as text_metrics
from ._migrate import ImportedRun as ImportedRun
from ._migrate import export_run as export_run
from ._migrate import import_run as import_run
from ._plan import compare_plans as compare_plans
from ._plan import plan as plan
from ._pretrain import pretrain as pretrain
from ._report import RunResult as RunResult
from ._run_data import read_corpus as read_corpus
from ._run_folder import read_settings as read_settings
from ._run_folder import sequences_of_last_start as sequences_of_last_start
from ._run_folder import settings_path as settings_path
from ._run_folder import write_settings as write_settings
from ._run_io import Run as Run
from ._run_io import first_run_state as first_run_state
from ._run_io import read_run as read_run
from ._run_io import write_run as write_run
from ._setup import Setup as Setup
from ._setup import build_setup as build_setup
from ._train import train as train
from ._trainer_run import ExportedRun as ExportedRun
from ._tuning_task import tuning_corpus as tuning_corpus
from ._tuning_task import tuning_task as tuning_task
