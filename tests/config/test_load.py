"""Settings from presets and overrides: strictness, one report of all mistakes, inheritance, replacement, origins."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopecli.config.files import find_preset, list_presets
from hopecli.config.load import load_preset, load_tree, section_tree
from hopecli.config.schema import ConvLSTMSettings, HopeSettings, Settings
from hopecli.errors import SettingsError


def mistakes(*overrides: str, preset: str = "vjepa2_ac") -> str:
    """The message for overrides that are wrong."""
    with pytest.raises(SettingsError) as raised:
        load_preset(preset, overrides)
    assert raised.value.exit_code == 2
    return str(raised.value)


def preset_file(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.batchsize=4", ("data.batchsize = 4", "unknown key", "nearest: data.batch_size")),
        ("lr=1", ("lr = 1", "nearest: optimizer.lr")),
        ("seed=1", ("nearest: training.seed",)),
        ("optimzer.lr=1", ("optimzer.lr = 1: unknown key; nearest: optimizer.lr",)),
        ("adaptatoin.lr=1", ("adaptatoin.lr = 1", "nearest: adaptation.lr")),
        ("data.physcs.clip=9", ("data.physcs.clip = 9", "nearest: data.physics.clips")),
        ("training.lr=1", ("training.lr = 1", "nearest: optimizer.lr")),
        ("optimzer=1", ("optimzer = 1", "nearest: optimizer")),
        ("schedule.foo=1", ("schedule.foo = 1", "unknown key; there are warmup_start_lr, final_lr, warmup_pct,")),
        ("foo.bar=1", ("foo.bar = 1", "unknown key; there are description, data, model,")),
        ("objective.curriculum=[{epoch: 2, T_rolout: 4}]", ("[0].T_rolout = 4", "nearest: objective.curriculum[0].T")),
        ("data.batch_size=0", ("data.batch_size = 0", "greater than 0")),
        ("data.batch_size=true", ("data.batch_size = True", "integer")),
        ("data.batch_size=4.0", ("data.batch_size = 4.0", "integer")),
        ("data.batch_size='4'", ("data.batch_size = '4'", "integer")),
        ("optimizer.lr=fast", ("optimizer.lr = 'fast'", "number")),
        ("optimizer.lr=.nan", ("optimizer.lr = nan", "finite")),
        ("optimizer.betas=[0.9, 1.5]", ("optimizer.betas[1] = 1.5", "less than 1")),
        ("data.action_alignment=pulse", ("'pulse'", "'impulse', 'per_timestep' or 'as_is'")),
        ("model.kind=vit", ("model.kind = 'vit'", "vit_ac, convlstm, copy_last, hope")),
        ("model.hidden=8", ("model.hidden = 8", "another kind of model")),
        ("model.width=100", ("model.width = 100", "multiple of num_heads = 16")),
        ("schedule.decay_pct=0.5", ("0.085 + 0.83 + 0.5", "sum to 1")),
        ("training.accumulate=3", ("training.accumulate = 3", "divide data.batch_size = 64")),
        ("objective.loss_exp=0", ("objective.loss_exp = 0", "greater than 0")),
        ("objective.T_rollout=8", ("objective.T_rollout = 8", "= 9 exceeds num_timesteps = 8")),
        ("objective.T_teacher=8", ("objective.T_teacher = 8", "at most data.num_timesteps - 1 = 7")),
        ("objective.curriculum=[{epoch: 3}, {epoch: 3}]", ("objective.curriculum = [3, 3]", "epochs must ascend")),
        ("objective.curriculum=[{epoch: -1}]", ("objective.curriculum[0].epoch = -1", "greater than or equal to 0")),
        ("objective.curriculum=[{epoch: 2, T_rollout: 9}]", ("objective.curriculum[0].T_rollout = 9", "exceeds")),
        (  # a phase keeps the context of the one before
            "objective.curriculum=[{epoch: 1, context_frames: 2, T_rollout: 6}, {epoch: 2, T_rollout: 7}]",
            ("objective.curriculum[1].T_rollout = 7", "= 9 exceeds num_timesteps = 8"),
        ),
        ("objective.curriculum=[{epoch: 2, weight: 9}]", ("objective.curriculum[0].weight = 9", "unknown key")),
        ("evaluation.T_rollout=8", ("evaluation.T_rollout = 8", "exceeds num_timesteps = 8")),
        ("data=3", ("data = 3", "section")),
        ("training.epochs=1" + 18 * "0", ("training.epochs = 1" + 18 * "0", "less than or equal to 1000000000")),
        ("data.batch_size.x=3", ("data.batch_size.x = 3", "not a section")),
        ("data.batch_size", ("data.batch_size", "KEY=VALUE")),
        ("data", ("data: overrides are KEY=VALUE",)),
        ("optimizer.lr=", ("optimizer.lr = null: ", "number")),
        ("model=null", ("model = null: must be a section of keys with a kind: vit_ac, convlstm, copy_last, hope",)),
        ("model=[]", ("model = []: must be a section of keys with a kind: vit_ac,",)),
        ("data.data_dir=''", ("data.data_dir = '': is empty",)),
        ("TRAINING.EPOCHS=3", ("TRAINING.EPOCHS = 3", "nearest: training.epochs")),
        ("objective.t_rollout=3", ("nearest: objective.T_rollout",)),
        ("objective.curriculum[0].epoch=3", ("not set one by one; write objective.curriculum=[...]",)),
        (".data=3", (".data = 3: has an empty part; did you mean data?",)),
        ("data..grid=3", ("has an empty part; did you mean data.grid?",)),
        ("data={~: 1}", ("data.~ = 1: unknown key",)),
        ("{true: 1}=1", ("{true: 1} = 1: unknown key",)),
        ("data.batch_size=[1", ("data.batch_size = '[1'", "not valid YAML")),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(override: str, parts: tuple[str, ...]) -> None:
    message = mistakes(override)
    assert "mistakes" not in message
    for part in parts:
        assert part in message


def test_all_mistakes_come_in_one_message() -> None:
    message = mistakes("data.batchsize=4", "optimizer.lr=-1", "model.width=100", "schedule.warmup_pct=2")
    head, *lines = message.splitlines()
    assert "preset vjepa2_ac" in head
    assert "4 mistakes" in head
    assert [line.split()[0].rstrip(":") for line in lines] == [
        "data.batchsize",
        "optimizer.lr",
        "schedule.warmup_pct",
        "model.width",
    ]


def test_mistakes_of_preset_and_overrides_are_reported_together(tmp_path: Path) -> None:
    path = preset_file(tmp_path, "wrong", "extends: vjepa2_ac\ndata: {grd: 4}\noptimizer: {lr: -1.0}\n")
    message = mistakes("training.epochs=0", preset=path)
    for part in ("data.grd = 4: unknown key; nearest: data.grid", "optimizer.lr = -1.0", "training.epochs = 0"):
        assert part in message


def test_extends_merges_sections_and_keeps_origins(tmp_path: Path) -> None:
    preset_file(tmp_path, "parent", "description: parent\ndata: {grid: 4, embed_dim: 32}\noptimizer: {lr: 0.5}\n")
    path = preset_file(tmp_path, "child", "extends: parent\ndata: {embed_dim: 64}\n")
    resolved = load_preset(path, ["optimizer.lr=0.25"])
    assert (resolved.settings.data.grid, resolved.settings.data.embed_dim) == (4, 64)
    assert resolved.settings.optimizer.lr == 0.25
    assert resolved.settings.description == ""  # a parent's description is not the child's
    assert resolved.name == "child"
    expected = {"data.grid": "parent", "data.embed_dim": "child", "optimizer.lr": "command line"}
    assert {key: resolved.origins[key] for key in expected} == expected
    assert resolved.origins["data.batch_size"] == "default"


def test_extends_reaches_over_several_presets(tmp_path: Path) -> None:
    preset_file(tmp_path, "a", "data: {grid: 2}\ntraining: {epochs: 1}\n")
    preset_file(tmp_path, "b", "extends: a\ntraining: {epochs: 2}\n")
    resolved = load_preset(preset_file(tmp_path, "c", "extends: b\ntraining: {seed: 9}\n"))
    assert (resolved.settings.data.grid, resolved.settings.training.epochs, resolved.settings.training.seed) == (
        2,
        2,
        9,
    )


def test_extends_takes_the_file_beside_a_preset_first(tmp_path: Path) -> None:
    preset_file(tmp_path, "quickstart", "training: {epochs: 77}\n")  # there is one of this name in the repository
    resolved = load_preset(preset_file(tmp_path, "child", "extends: quickstart\n"))
    assert resolved.settings.training.epochs == 77


def test_a_path_in_extends_starts_at_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for folder, epochs in ((tmp_path, 66), (tmp_path / "folder", 77)):
        preset_file(folder, "parent", f"training: {{epochs: {epochs}}}\n")
        preset_file(folder, "here", f"training: {{epochs: {epochs}}}\n")
    (tmp_path / "folder" / "here.yaml").unlink()
    for parent, epochs in (("parent.yaml", 77), ("here.yaml", 66)):
        child = preset_file(tmp_path / "folder", "child", f"extends: {parent}\n")
        assert load_preset(child).settings.training.epochs == epochs


def test_circular_extends_is_an_error(tmp_path: Path) -> None:
    preset_file(tmp_path, "b", "extends: a\n")
    path = preset_file(tmp_path, "a", "extends: b\n")
    with pytest.raises(SettingsError, match=r"circle.*a -> b -> a"):
        load_preset(path)


def test_a_section_with_a_kind_is_replaced(tmp_path: Path) -> None:
    path = preset_file(tmp_path, "lstm", "extends: vjepa2_ac\nmodel: {kind: convlstm, hidden: 8}\n")
    assert load_preset(path).settings.model == ConvLSTMSettings(hidden=8, kernel_size=3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.kind=convlstm", "model.hidden=8"],
        ["model.hidden=8", "model.kind=convlstm"],
        ["model={kind: convlstm, hidden: 8}"],
        ["model.hidden=8", "model={kind: convlstm}"],
    ],
)
def test_kind_override_replaces_the_model(overrides: list[str]) -> None:
    assert load_preset("vjepa2_ac", overrides).settings.model == ConvLSTMSettings(hidden=8)


@pytest.mark.parametrize("overrides", [["model.kind=hope", "model.depth=2"], ["model={kind: hope, depth: 2}"]])
def test_kind_override_leaves_no_stale_origins(overrides: list[str]) -> None:
    resolved = load_preset("vjepa2_ac", overrides)
    assert resolved.settings.model == HopeSettings(depth=2)
    assert resolved.origins["model.width"] == "default"  # the 384 of vjepa2_ac went with its model
    assert resolved.origins["model.depth"] == "command line"


def test_a_model_replaced_by_a_child_leaves_no_stale_origins(tmp_path: Path) -> None:
    origins = load_preset(preset_file(tmp_path, "child", "extends: vjepa2_ac\nmodel: {kind: hope, depth: 2}\n")).origins
    assert (origins["model.depth"], origins["model.width"]) == ("child", "default")
    assert origins["data.batch_size"] == "vjepa2_ac"


def test_a_value_replaced_leaves_the_origin_of_one_whose_name_begins_alike(tmp_path: Path) -> None:
    path = preset_file(tmp_path, "mine", "logging: {wandb: online, wandb_project: worlds}\n")
    origins = load_preset(path, ["logging.wandb=disabled"]).origins
    assert (origins["logging.wandb"], origins["logging.wandb_project"]) == ("command line", "mine")


def test_section_override_merges() -> None:
    data = load_preset("vjepa2_ac", ["data={batch_size: 2, workers: 0}"]).settings.data
    assert (data.batch_size, data.workers, data.action_dim) == (2, 0, 2)


def test_duplicate_key_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = preset_file(tmp_path, "twice", "data:\n  grid: 4\n  grid: 8\n")
    with pytest.raises(SettingsError, match=r"twice\.yaml:3.*'grid' is given twice"):
        load_preset(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- 1\n", "mapping"),
        ("data: [\n", "not valid YAML"),
        ("extends: [a, b]\n", "one preset name"),
        ("x: \x00", "YAML"),
    ],
)
def test_malformed_preset_files(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=match):
        load_preset(preset_file(tmp_path, "bad", text))


def test_a_nul_in_a_name_is_a_mistake_like_others() -> None:
    with pytest.raises(SettingsError, match=r"data\.feature_map = .*: holds a NUL character \("):
        load_preset("quickstart", ['data.feature_map="a\\0b"'])


def test_unknown_preset_shows_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"'quikstart'.*Did you mean quickstart"):
        find_preset("quikstart")
    with pytest.raises(SettingsError, match="no such preset file"):
        find_preset("nowhere/quickstart.yaml")
    with pytest.raises(SettingsError, match="no such preset"):
        find_preset("x" * 300)  # longer than any file's name


def test_presets_of_the_working_directory_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = find_preset("quickstart").resolve()
    monkeypatch.chdir(tmp_path)
    assert find_preset("quickstart").resolve() == repository  # found from any folder
    (tmp_path / "presets").mkdir()
    preset_file(tmp_path / "presets", "quickstart", "training: {epochs: 77}\n")
    assert load_preset("quickstart").settings.training.epochs == 77
    assert list_presets()["quickstart"].resolve() == tmp_path / "presets" / "quickstart.yaml"
    assert "vjepa2_ac" in list_presets()


def test_the_list_has_files_in_alphabetical_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets" / "quickstart.yaml").mkdir(parents=True)  # no file: the repository's is meant
    for name in ("zz", "aa"):
        preset_file(tmp_path / "presets", name, "")
    assert list(list_presets()) == sorted({*list_presets(), "aa", "zz"})
    assert list_presets()["quickstart"] == find_preset("quickstart")
    assert list_presets()["quickstart"].is_file()


def test_an_empty_preset_is_all_defaults(tmp_path: Path) -> None:
    resolved = load_preset(preset_file(tmp_path, "empty", "# nothing yet\n"))
    assert resolved.settings == Settings()
    assert set(resolved.origins.values()) == {"default"}


def test_settings_are_frozen() -> None:
    settings = load_preset("vjepa2_ac").settings
    with pytest.raises(ValueError, match="frozen"):
        settings.data.grid = 3  # type: ignore[misc]


def test_tree_from_a_checkpoint_keeps_its_origin_and_is_not_changed() -> None:
    tree = {"data": {"grid": 4}}
    resolved = load_tree(tree, ["data.grid=8"], name="run", origin="checkpoint")
    assert (resolved.settings.data.grid, tree) == (8, {"data": {"grid": 4}})
    kept = load_tree(tree, ["data.workers=0"], name="run", origin="checkpoint").origins
    assert (kept["data.grid"], kept["data.workers"]) == ("checkpoint", "command line")


def test_section_tree_gives_what_the_preset_writes_down() -> None:
    tree = section_tree("test_ac_predictor", ["evaluation", "adaptation"])
    assert tree == {"evaluation": {"batch_size": 32, "precision": "fp32", "context_frames": 1, "T_rollout": 7}}


def test_section_tree_refuses_a_preset_with_a_mistake_anywhere(tmp_path: Path) -> None:
    path = preset_file(tmp_path, "wrong", "evaluation: {batch_size: 2}\ndata: {grid: 0}\n")
    with pytest.raises(SettingsError, match=r"data\.grid = 0"):
        section_tree(path, ["evaluation"])


def test_built_in_clips_have_no_extrinsics() -> None:
    with pytest.raises(
        SettingsError, match=r"model\.use_extrinsics = True: the clips of data\.source: physics have no"
    ):
        load_preset("quickstart", ["model.use_extrinsics=true"])
