"""The settings of a run: frozen sections, one per concern, every field described."""

from __future__ import annotations

from pydantic import Field

from hopecli.config.schema.base import Section
from hopecli.config.schema.data import DataSettings, PhysicsSettings
from hopecli.config.schema.model import (
    ConvLSTMSettings,
    CopyLastSettings,
    HopeSettings,
    ModelSettings,
    ViTACSettings,
)
from hopecli.config.schema.objective import CurriculumPhase, ObjectiveSettings, OptimizerSettings, ScheduleSettings
from hopecli.config.schema.running import AdaptationSettings, EvaluationSettings, LoggingSettings, TrainingSettings


class Settings(Section):
    """Everything a run depends on; `--print-config` prints it and a run directory keeps it as config.yaml."""

    description: str = Field("", description="one line for `hope presets`")
    data: DataSettings = Field(DataSettings(), description="clips")
    model: ModelSettings = Field(ViTACSettings(), description="predictor, by kind")
    objective: ObjectiveSettings = Field(ObjectiveSettings(), description="losses")
    optimizer: OptimizerSettings = Field(OptimizerSettings(), description="AdamW")
    schedule: ScheduleSettings = Field(ScheduleSettings(), description="learning rate over the run")
    training: TrainingSettings = Field(TrainingSettings(), description="training loop")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="hope eval")
    adaptation: AdaptationSettings = Field(AdaptationSettings(), description="hope tta")
    logging: LoggingSettings = Field(LoggingSettings(), description="records and mirrors")

    @property
    def use_extrinsics(self) -> bool:
        """Whether the model is given extrinsics; kinds without the setting never are."""
        return getattr(self.model, "use_extrinsics", False)

    @property
    def uses_states(self) -> bool:
        """Whether the model reads states; the baselines do not."""
        return isinstance(self.model, ViTACSettings | HopeSettings)


__all__ = [
    "AdaptationSettings",
    "ConvLSTMSettings",
    "CopyLastSettings",
    "CurriculumPhase",
    "DataSettings",
    "EvaluationSettings",
    "HopeSettings",
    "LoggingSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "PhysicsSettings",
    "ScheduleSettings",
    "Section",
    "Settings",
    "TrainingSettings",
    "ViTACSettings",
]
