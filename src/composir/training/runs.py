"""Which run trains which kind of model, and how one is begun or gone on with."""

from __future__ import annotations

from pathlib import Path

from composir import parallel
from composir.files import require_locks
from composir.models.backbones import BACKBONES
from composir.token_cache import ON_DISK, TokenPlace
from composir.training.composer import ComposerRun
from composir.training.feedback import FeedbackRun
from composir.training.fingerprint import require_same_data
from composir.training.guards import NO_LOCKS_FIX, deterministic, make_accelerator, one_line_for, require_writable
from composir.training.heads import HeadRun
from composir.training.loop import Run, TrainResult
from composir.training.lora import LoraRun
from composir.training.observer import Observer, Silent
from composir.training.recipe import Recipe


def train(
    recipe: Recipe,
    *,
    resume: Path | None = None,
    observer: Observer | None = None,
    place: TokenPlace = ON_DISK,
    largest_batch: bool = False,
) -> TrainResult:
    """Return the result of training by ``recipe``, in a new run folder, or of going on with the run ``resume``.

    With ``largest_batch`` the recipe's ``batch_size`` becomes the largest power of two that the memory holds; a batch
    is what a query is compared with, so that another machine may train otherwise.

    Image tokens are kept in ``place``; the threads that decode are the recipe's. Of a backbone a whole model is
    trained, of any other model a head on its vectors or adapters in it; with an ``index`` the vectors are those of
    that.

    Before the first step all annotations and all images are checked, and with ``resume`` that the annotations are those
    the run began with. An interrupt (Ctrl-C, SIGTERM) finishes the step, saves ``last/`` and returns with
    ``interrupted``. A loss that is not finite raises ``ComposirError`` with the step and the ids of the batch;
    ``last/`` is then the last good state.
    """
    observer = observer or Silent()
    make_run = _kind_of_run(recipe)
    accelerator = make_accelerator(recipe)
    with deterministic(recipe.deterministic), one_line_for(resume or Path(recipe.output_dir)):
        with parallel.together(accelerator.device):
            train_splits, val_splits, left_by_key = make_run.read(recipe, resume, observer)
            if resume is None:
                require_writable(Path(recipe.output_dir))
            require_locks(resume or Path(recipe.output_dir), NO_LOCKS_FIX)
            if resume is not None and not require_same_data(resume, [*train_splits, *val_splits]):
                observer.on_note(
                    f"{resume} does not say what it was trained on, being of an earlier version; "
                    "whether the annotations have changed since cannot be told"
                )
            run = make_run(
                recipe,
                accelerator,
                train_splits=train_splits,
                val_splits=val_splits,
                observer=observer,
                left_by_key=left_by_key,
                place=place,
            )
            if largest_batch:
                run.take_largest_batch()
            run.require_room()
        with parallel.together(accelerator.device):
            run.fill((parallel.process_index(), parallel.num_processes()))
        if parallel.num_processes() > 1:  # what the others have computed
            with parallel.together(accelerator.device):
                run.fill()
        return run.train(resume)


def _kind_of_run(recipe: Recipe) -> type[Run]:
    if recipe.backbone in BACKBONES:
        return ComposerRun
    return LoraRun if recipe.lora else FeedbackRun if recipe.index else HeadRun
