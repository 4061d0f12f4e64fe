"""The folder that a run leaves: who may train into it, and its files.

recipe.toml  environment.json  data.csv  metrics.jsonl  checkpoints/  model.safetensors  result.json
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from resnet_core.data import DataConfig, ImageFiles
from resnet_core.data.manifest import FileRecord, changes, content, from_csv, to_csv
from resnet_core.foundation.atomic import replace_file
from resnet_core.foundation.lock import NAME as LOCK
from resnet_core.foundation.lock import owning
from resnet_core.foundation.toml import from_mapping, merged, read_toml, to_toml
from resnet_core.recipes.checks import check
from resnet_core.recipes.experiment import Experiment
from resnet_core.recipes.fast import with_choice_of
from resnet_core.recipes.recipe import ModelConfig, Recipe
from resnet_core.train import CheckpointError
from resnet_core.train.checkpoint import RECORD, list_checkpoints, read_record

# Settings that cannot change a run's weights: with other values the same run continues. Data may move, not differ:
# which images an exclude list leaves is part of their identity.
NOT_PART_OF_THE_RUN = ("run", "data.workers", "data.path", "data.exclude")


class RunFolder:
    """A run's folder. Once claimed, it is closed to other jobs until the end of the `with` block."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "model.safetensors"
        self._recipe = self.path / "recipe.toml"
        self._environment = self.path / "environment.json"
        self._data = self.path / "data.csv"
        self._result = self.path / "result.json"
        self._lock = ExitStack()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def is_finished(self) -> bool:
        return self._result.exists()

    def claim(self, experiment: Experiment, processes: int = 1, *, allow_changes: bool = False) -> None:
        """Makes this the folder of the experiment's run and keeps other jobs out. The run's files stay as they are.

        Raises ValueError if a run that is not finished cannot be trained (see `check`), and for a folder that holds
        other files, or a run of another recipe or on other data; `allow_changes` continues such a run unless it is
        finished. Raises OSError if the folder cannot be written, or another job is at work there.
        """
        self.check_before(experiment, processes)
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(owning(self.path))
        for half_written in self.path.glob(".*.part"):
            half_written.unlink()

        self.check_same_run(experiment, allow_changes=allow_changes)
        # With changes the recipe is written later, when the checkpoint has been found to fit.
        if not self.has_begun or not allow_changes:
            self.write_recipe(experiment.recipe)

    @property
    def has_begun(self) -> bool:
        return self.is_finished or bool(list_checkpoints(self.checkpoints))

    def check_before(self, experiment: Experiment, processes: int) -> None:
        """What `claim` refuses before it touches the folder."""
        if not self.is_finished:
            check(experiment, processes)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file, not a folder; choose another folder with --out")
        images = experiment.dataset.train
        if (
            isinstance(images, ImageFiles)
            and Path(experiment.recipe.data.path).is_dir()
            and self.path.resolve().is_relative_to(images.folder.resolve())
        ):
            raise ValueError(
                f"{self.path} lies in {images.folder}, where each folder is a class of images; choose another folder "
                "with --out"
            )
        if not list_checkpoints(self.checkpoints) and not self._recipe.exists() and self.foreign_files():
            raise ValueError(f"{self.path} holds other files and no run; choose another folder with --out")

    def check_same_run(self, experiment: Experiment, *, allow_changes: bool) -> None:
        """What `claim` refuses of a run that has begun: another recipe or other data."""
        if self.is_finished or (self.has_begun and not allow_changes):
            self._refuse_changes(experiment)

    def foreign_files(self) -> list[Path]:
        """What lies in the folder that no run begins with."""
        ours = (LOCK, ".recipe.toml.")  # the latter is a half-written recipe
        return [path for path in self.path.iterdir() if not path.name.startswith(ours)] if self.path.exists() else []

    def _refuse_changes(self, experiment: Experiment) -> None:
        """Raises ValueError if the folder's run has another recipe or other data."""
        recipe_there, data_there = self.recorded_recipe()
        data_here = experiment.data_identity
        remedy = (
            f"choose another folder with --out; --model.weights {self.path} starts another run from its weights"
            if self.is_finished
            else "choose another folder with --out; --allow-changes continues this run all the same"
        )

        settings = [
            f"{key} is {there!r} there and {here!r} here"
            for key, there, here in differences_of(recipe_there, self.settled(experiment.recipe))
        ]
        if settings:
            raise ValueError(f"{self.path} holds the run of another recipe ({'; '.join(settings)}); {remedy}")

        data = [
            f"{key}: {there} there and {data_here.get(key)} here"
            for key, there in data_there.items()
            if there != data_here.get(key) and key != "content"
        ]
        files = self._changed_files(data_there, experiment)
        if files and not files[0].startswith("the files"):  # named files say more than a hash of all names
            data = [each for each in data if not each.startswith("sha256")]
        if data or files:
            raise ValueError(
                f"{self.path} holds a run on other data ({'; '.join([*data, *files])}); correct data.path, or {remedy}"
            )

    def _changed_files(self, data_there: Mapping[str, Any], experiment: Experiment) -> list[str]:
        """In words which files of the data are not those of the folder's run."""
        recorded = data_there.get("content")
        if recorded in (None, experiment.data_identity.get("content")):  # an earlier version recorded none
            return []
        try:
            files = from_csv(self._data.read_bytes())
        except (OSError, ValueError):
            files = ()
        if content(files) != recorded:
            return [f"the files differ, and {self._data.name}, which would say how, is missing or was changed"]
        return changes(files, experiment.data_files)

    def data_changes(self, experiment: Experiment) -> list[tuple[str, str]]:
        """Which files of the data have changed since the run was trained, as label and text of a line."""
        files = self._changed_files(self.recorded_recipe()[1], experiment)
        return [("changed", f"since the run was trained: {'; '.join(files)}")] if files else []

    def recorded_recipe(self) -> tuple[Recipe, dict[str, Any]]:
        """The recipe of the folder's run and the identity of its data, from the newest checkpoint with a whole record.

        Nobody can have edited that. Without such a checkpoint they come from recipe.toml and environment.json.
        """
        for path in reversed(list_checkpoints(self.checkpoints)):
            with suppress(CheckpointError, KeyError):  # KeyError: another loop's checkpoint
                state = read_record(path)["state"]
                return _as_recipe(tomllib.loads(state["recipe"]), str(path / RECORD)), state["data"]
        return self.read_recipe(), self.read_environment().get("data", {})

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe with the settings in place of `train.fast` with which the folder's run has begun, if it has."""
        if not (recipe.train.fast and self.has_begun):
            return recipe
        return with_choice_of(recipe, self.recorded_recipe()[0])

    def read_recipe(self) -> Recipe:
        """The recipe. Raises ValueError if there is none, or it cannot be read."""
        if not self._recipe.is_file():
            reason = "it has no recipe.toml" if self.path.exists() else "it does not exist"
            raise ValueError(f"{self.path} is not a run's folder: {reason}; `resnet-core train` makes one")
        return _as_recipe(read_toml(self._recipe), str(self._recipe))

    def write_recipe(self, recipe: Recipe) -> None:
        self._write(self._recipe, to_toml(recipe).encode())

    def read_environment(self) -> dict[str, Any]:
        """What the run was computed on; empty as long as that is unknown. Raises ValueError for a damaged file."""
        return _from_json(self._environment, remedy="remove it to continue") or {}

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        self._write(self._environment, as_json(environment))

    def write_files(self, files: Sequence[FileRecord]) -> None:
        """Writes the files that the run is trained and evaluated on, of data in files."""
        if files:
            self._write(self._data, to_csv(files))

    def read_result(self) -> dict[str, float] | None:
        """The result of a finished run, None if the run is not finished. Raises ValueError for a damaged file."""
        return _from_json(self._result, remedy="remove it, and the run ends again")

    def write_result(self, result: Mapping[str, float]) -> None:
        self._write(self._result, as_json(result))

    def write_lost_batch(self, record: Mapping[str, Any]) -> Path:
        """Writes which samples were in the batch of a step that could not be done, and returns the file's path."""
        path = self.path / "lost_batch.json"
        self._write(path, as_json(record))
        return path

    def _write(self, path: Path, data: bytes) -> None:
        with write_errors(self.path):
            replace_file(path, data)


def read_recipe(folder: str | Path) -> Recipe:
    """The recipe of a run's folder. Raises ValueError if there is none, or it cannot be read."""
    return RunFolder(folder).read_recipe()


def read_result(folder: str | Path) -> dict[str, float] | None:
    """The result of a finished run, None if the run is not finished. Raises ValueError for a damaged file."""
    return RunFolder(folder).read_result()


def differences_of(one: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """`("optimizer.lr", 0.1, 0.2)` for each setting that differs, without those that are not part of the run."""

    def between(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
        for key, value in first.items():
            if prefix + key in NOT_PART_OF_THE_RUN:
                continue
            if isinstance(value, Mapping):
                yield from between(value, second[key], f"{prefix}{key}.")
            elif value != second[key]:
                yield prefix + key, value, second[key]

    return list(between(asdict(one), asdict(other), ""))


def _as_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    # An older version wrote fewer sections and settings: those that are missing take their defaults.
    sections = {each.name: asdict(each.default_factory()) for each in fields(Recipe) if callable(each.default_factory)}
    for name, config in (("model", ModelConfig), ("data", DataConfig)):
        sections[name] = {each.name: each.default for each in fields(config) if each.default is not MISSING}
    recipe: Recipe = from_mapping(Recipe, merged(sections, values), where)
    return recipe


def _from_json(path: Path, *, remedy: str) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.exists() else None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {remedy}") from error


def as_json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2).encode()


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Inside this context, an OSError is raised with the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error.strerror}); make room there, or choose another folder with --out"
        ) from error
